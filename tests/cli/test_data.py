"""`mllmsubj data pack` and `data check`; `data preview` is tested with toyworld."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mllmsubj.cli import main
from mllmsubj.data.pack import PackCallbacks, pack
from mllmsubj.data.sources import open_named
from tests.data.sources.pictures import encoded, noise, write_folder, write_manifest
from tests.environment import environment


@pytest.fixture
def pairs(tmp_path):
    write_folder(tmp_path / "pairs")
    return tmp_path / "pairs" / "pairs.jsonl"


def data(*flags):
    main.main(["mllmsubj", "data", *map(str, flags)])


def refused(capsys, *flags):
    """Returns the error line and the standard output of a command that fails."""
    with pytest.raises(SystemExit) as stopped:
        data(*flags)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert line.startswith("mllmsubj: error: ")
    return line, printed.out


def test_data_pack_check_output(pairs, tmp_path, capsys):
    output = tmp_path / "new" / "pack"
    data("pack", f"--source={pairs}", f"--output={output}", "--shards=2", "--threads=2")
    assert f"6 examples, 0 skipped, in {output}: 2 shards, " in capsys.readouterr().out
    data("check", f"--source={output}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("pack of 6 examples, 0 skipped, from manifest pairs.jsonl, 6 examples, sha256 ")
    assert lines[1:5] == [
        "6 examples, 0 broken",
        "3 with 1 reference",
        "3 with 2 references",
        "score dino: 0 to 0.625, missing in 1",
    ]
    assert [line.split() for line in lines[5:]] == [
        ["targets", "near", "2:3", "1", "32x48", "to", "32x48", "#" * 8],
        ["targets", "near", "3:2", "5", "48x32", "to", "48x32", "#" * 40],
    ]


def test_data_check_broken_examples(pairs, capsys):
    """`data check` lists every broken example with its cause."""
    folder = pairs.parent
    lines = write_folder(folder)
    (folder / "target0.jpg").unlink()
    (folder / "reference1_0.jpg").write_bytes((folder / "reference1_0.jpg").read_bytes()[:-200])
    (folder / "mask2.png").write_bytes(encoded(noise(0, mode="L").point(lambda _: 3), "PNG"))
    lines[4] |= dict(width=50, height=50)
    write_manifest(pairs, lines)
    error, out = refused(capsys, "check", f"--source={pairs}", "--threads=2")
    assert "4 of 6 examples are broken" in error
    broken = out.splitlines()[:4]
    for line, says in zip(
        broken,
        [
            "pairs.jsonl:1, target 'target0.jpg' is not there",
            "pairs.jsonl:2, reference 0 cannot be read as a picture: ",
            "pairs.jsonl:3, mask 0 shows no subject",
            "pairs.jsonl:5, target is 48x32, the index says 50x50",
        ],
        strict=True,
    ):
        assert line.startswith(says)
    assert "6 examples, 4 broken" in out


def test_data_pack_skipped_examples(pairs, tmp_path, capsys):
    """`data pack` skips unreadable examples and names each one on stderr."""
    (pairs.parent / "target3.jpg").write_bytes(b"")
    data("pack", f"--source={pairs}", f"--output={tmp_path / 'pack'}")
    printed = capsys.readouterr()
    assert "mllmsubj: skipped pairs.jsonl:4, target is no picture" in printed.err
    assert "5 examples, 1 skipped" in printed.out
    assert [each.prompt for each in open_named(str(tmp_path / "pack"), "train", 1, 64, 0)] == [
        f"number {i}, é" for i in (0, 1, 2, 4, 5)
    ]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["pack", "--output=pack"], "no source; name the data set with --source=SOURCE"),
        (["check"], "no source"),
        (["pack", "--source=toyworld"], "no output; name the pack's folder"),
        (["pack", "--source=toyworld", "--output=gs://a/b"], "'gs://a/b' is a bucket"),
        (["pack", "--source=toyworld", "--output=/dev/null/pack"], "cannot write the pack '/dev/null/pack'"),
        (["pack", "--source=toyworld", "--output=pack", "--count=3"], "--count is not a flag of data pack"),
        (["check", "--source=toyworld", "--output=a"], "--output is not a flag of data check"),
        (["preview", "--output=a.png", "--source=toyworld"], "--source is not a flag of data preview"),
        (["check", "--source=toyworld", "--split=dev"], "split 'dev' of toyworld"),
        (["check", "--source=nowhere"], "source 'nowhere' is not there"),
        (["check", "--source=toyworld", "--examples=0"], "examples"),
        (["pick"], "did you mean 'pack'"),
    ],
)
def test_data_invalid_arguments(tmp_path, monkeypatch, capsys, flags, says):
    """The error is one line, and no file is written."""
    monkeypatch.chdir(tmp_path)
    error, out = refused(capsys, *flags)
    assert says in error
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_data_pack_resume_after_kill(tmp_path):
    """A killed `data pack` resumes with its finished shards, and the pack equals an uninterrupted one."""
    flags = ["--source=toyworld", "--examples=120", "--size=256", "--shards=6", "--threads=2", "--seed=5"]
    command = [sys.executable, "-m", "mllmsubj", "data", "pack", f"--output={tmp_path / 'pack'}", *flags]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("pack/*.array_record")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pack/data-*.array_record")}
    assert 0 < len(whole) < 6
    assert not (tmp_path / "pack" / "pack.json").exists()

    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert "120 examples, 0 skipped" in done.stdout
    assert all(path.stat().st_mtime_ns == before for path, before in whole.items())
    source = open_named("toyworld", "train", 120, 256, 5)
    straight = pack(source, tmp_path / "straight", 6, 2, PackCallbacks(lambda _: None, pytest.fail))
    resumed = open_named(str(tmp_path / "pack"), "train", 1, 64, 0)
    assert list(resumed) == list(straight)
    assert repr(resumed) == repr(straight)
    for name in ("width", "height", "references"):
        np.testing.assert_array_equal(getattr(resumed.index(), name), getattr(straight.index(), name))
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("pack", "straight")]
    assert files[0].keys() == files[1].keys()
