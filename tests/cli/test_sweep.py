"""`mllmsubj sweep`: argument errors, commands, the launcher, and a sweep that is killed and resumes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from mllmsubj.cli import main
from mllmsubj.train.workdir import is_locked
from tests.environment import PIPES, ROOT, environment
from tests.train.runs import CONFIG

TINY = str(ROOT / "configs" / "tiny.py")
FILES_OF_A_RUN = ["eval", "evaluation.json", "log.txt"]
SWEEP = """
from mllmsubj.sweeps import grid, listed

def get_sweep(config):
    return {runs}
"""


pytestmark = pytest.mark.usefixtures("here")


def sweep_file(runs, name="some"):
    with open(f"{name}.py", "w") as file:
        file.write(SWEEP.format(runs=runs))
    return f"--sweep={name}.py"


def call(capsys, *words, code=0):
    found = 0
    try:
        main.main(["mllmsubj", "sweep", *words])
    except SystemExit as stopped:
        found = stopped.code
    assert found == code
    return capsys.readouterr()


@pytest.mark.parametrize(
    ("runs", "more", "says"),
    [
        ("[]", [], ["'some.py' yields no runs"]),
        ("[3]", [], ["yields 3; a run is a dict"]),
        ("1 / 0", [], ["'some.py' fails to load: ZeroDivisionError"]),
        ("listed('model.dla.widht', (1,))", [], ["run 1 of the sweep", "model.dla.widht (did you mean 'width'?)"]),
        ("listed('model.dla.width', (128, 'x'))", [], ["run 2 of the sweep (dla.width=x)", "dla.width=x"]),
        ("listed('sampling.tau1', (0.9, 0.5))", [], ["run 2 of the sweep (tau1=0.5)", "tau1=0.5, tau2=0.59"]),
        ("listed('prompt.system', (None,))", [], ["prompt.system is None, which the command line", "read as 'None'"]),
        ("listed('model.dla.states', ((0, 8),))", [], ["states=0-8", "must be a range", "(0, 7)"]),
        ("2 * listed('seed', (1,))", [], ["the sweep has run seed=1 twice"]),
        ("[{}, {'seed': 0}]", [], ["run 2 of the sweep (seed=0) is the same as base"]),
        ("listed('seed', (1,))", ["--config.seed=3"], ["sets seed; leave out --config.seed"]),
        ("listed('seed', (1,))", ["--parallel=0"], ["--parallel=0"]),
        ("listed('seed', (1,))", ["--benchmark=held"], ["'held' (did you mean 'heldout'?)"]),
        ("listed('seed', (1,))", ["--launch=no-such-program --"], ["cannot launch with 'no-such-program'"]),
        ("listed('seed', (1,))", ["--checkpoint=tiny"], ["either --config=FILE", "or --checkpoint=DIR"]),
        ("listed('seed', (1,))", ["--checkpoint=tiny", "--config="], ["sets seed; with --checkpoint only", "sampling"]),
        ("listed('seed', (1,))", ["--sweep=sone.py"], ["'sone.py' is not there (did you mean 'some.py'?)"]),
        ("listed('seed', (1,))", ["--sweep="], ["no sweep; name its file"]),
        ("listed('seed', (1,))", ["--workdir="], ["no workdir"]),
        ("listed('seed', (1,))", ["--workdir=some.py"], ["'some.py' is a file"]),
        ("listed('seed', (1,))", ["--summary"], ["out holds no sweep"]),
    ],
)
def test_sweep_invalid_arguments(tmp_path, capsys, runs, more, says):
    """The error is one line, and no file is written."""
    flags = [f"--config={TINY}", sweep_file(runs), "--workdir=out", *more]
    out, err = call(capsys, *flags, code=2)
    assert out == ""
    assert err.startswith("mllmsubj: error: ")
    assert err.count("\n") == 1
    for text in says:
        assert text in err
    assert [path.name for path in tmp_path.iterdir()] == ["some.py"]


def test_sweep_dry_run(tmp_path, capsys):
    runs = "grid({'model.dla.states': ((0, 3), (3, 7)), 'sampling.tau1': (0.9, 0.95)})"
    flags = [f"--config={TINY}", sweep_file(runs), "--workdir=out", "--limit=5", "--config.seed=7", "--dry_run"]
    train = (
        f"mllmsubj train --config={TINY} --workdir=out/states=0-3 --config.seed=7 '--config.model.dla.states=(0, 3)'"
    )
    assert call(capsys, *flags, f"--launch={sys.executable} launch.py --name=sweep-{{}} --").out.splitlines() == [
        f"{sys.executable} launch.py --name=sweep-1 -- {train}",
        f"{sys.executable} launch.py --name=sweep-4 -- {train.replace('0-3', '3-7').replace('(0, 3)', '(3, 7)')}",
    ]
    lines = call(capsys, *flags).out.splitlines()
    assert len(lines) == 6
    assert lines[0] == train
    assert lines[2] == (
        "mllmsubj evaluate --checkpoint=out/states=0-3 --benchmark=heldout --output=out/states=0-3,tau1=0.95/eval "
        "--config.seed=7 --config.sampling.tau1=0.95 --limit=5"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["some.py"]


def test_sweep_launcher(tmp_path, capsys):
    """The launcher gets the command as separate words; a run without a trained model is not evaluated."""
    (tmp_path / "launch.py").write_text(
        "import json, sys\nopen(sys.argv[1], 'w').write(json.dumps(sys.argv[2:]))\nsys.exit(sys.argv[1] == '3')"
    )
    flags = [f"--config={TINY}", sweep_file("listed('model.dla.states', ((0, 3), (3, 7)))"), "--workdir=out"]
    out, err = call(capsys, *flags, f"--launch={sys.executable} launch.py {{}} --", code=1)
    assert json.loads((tmp_path / "1").read_text()) == [
        *("--", "mllmsubj", "train", f"--config={TINY}", "--workdir=out/states=0-3"),
        "--config.model.dla.states=(0, 3)",
    ]
    assert "cannot train states=3-7: exit code 1" in err
    assert out.count("not begun") == 2
    assert not (tmp_path / "2").exists()


def test_sweep_workdir_mismatch(capsys):
    """A workdir accepts more runs of its sweep, but no other sweep or config."""
    launch = f"--launch={sys.executable} -c pass"
    flags = [f"--config={TINY}", "--workdir=out", launch]
    call(capsys, *flags, sweep_file("listed('seed', (1,))"))
    call(capsys, *flags, sweep_file("listed('seed', (1, 2))"))  # more runs of the same sweep are allowed
    err = call(capsys, *flags, sweep_file("listed('seed', (1,))", "other"), code=2).err
    assert "out holds the sweep some of its own trainings, this is other" in err
    err = call(capsys, *flags, sweep_file("listed('seed', (1,))"), "--config.train.clip_norm=3.0", code=2).err
    assert "out holds a sweep over another config: train.clip_norm: 1.0 there, 3.0 here" in err


@pytest.mark.slow
def test_sweep_resume_after_kill(tmp_path, capsys):
    """The sweep and its training are killed; the next sweep finishes both runs, and a third one has nothing to do."""
    flags = [f"--config={CONFIG}", sweep_file("[{}, {'sampling.tau1': 0.9}]"), "--workdir=out", "--limit=2"]
    flags += ["--config.train.stage1.steps=0", "--config.train.stage2.steps=20", "--config.evals.samples.count=1"]

    def start():
        command = [sys.executable, "-m", "mllmsubj", "sweep", *flags]
        return subprocess.Popen(command, env=environment() | {"PYTHONPATH": str(ROOT)}, **PIPES)

    base, process = tmp_path / "out" / "base", start()
    end = time.time() + 300
    while not any(path.name.isdigit() for path in base.glob("checkpoints/*")):
        assert process.poll() is None, process.communicate()
        assert time.time() < end
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert is_locked(base)  # the training still runs; a new sweep would wait for it
    os.kill(int((base / ".lock").read_text()), signal.SIGKILL)
    out = call(capsys, "--workdir=out", "--summary").out
    assert re.search(r"^0\.9 +at step \d+$", out, re.MULTILINE)

    out, err = start().communicate(timeout=600)
    assert err.splitlines()[-1] == "mllmsubj: 2 of 2 runs done", err
    log = (base / "log.txt").read_text()
    assert re.findall(r"mllmsubj: resumes from step (\d+)", log) not in ([], ["0"])
    assert [log.count(f"$ mllmsubj {command} ") for command in ("train", "evaluate")] == [2, 1]
    assert sorted(path.name for path in (tmp_path / "out" / "tau1=0.9").iterdir()) == FILES_OF_A_RUN
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").read_text().splitlines()))
    assert [(row["run"], row["status"]) for row in rows] == [("base", "finished"), ("tau1=0.9", "finished")]
    assert float(rows[0]["loss/all"]) > 0
    assert out.splitlines()[0].split()[:2] == ["tau1", "loss/all"]
    with Image.open(tmp_path / "out" / "summary.png") as picture:
        assert picture.width > 1000

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert call(capsys, *flags) == (out, "mllmsubj: 2 of 2 runs done\n")
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed <= {"out", ".lock", "sweep.json", "summary.csv", "summary.png"}
