"""`mllmsubj train`: output, files and error messages."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllmsubj.cli import main
from mllmsubj.errors import UserError
from mllmsubj.train import hooks
from mllmsubj.train.workdir import open_workdir
from tests.data.sources.pictures import encoded, noise
from tests.environment import PIPES, ROOT, environment
from tests.train.runs import (
    CONFIG,
    config,
    metrics,
    read,
    saves,
    start,
    train_here,
    wait_for_save,
    wait_for_step,
    weights,
)

ONE_STAGE = dict(train__stage1__steps=0, train__stage2__steps=4)


def refused(capsys, monkeypatch, workdir, *flags, config=CONFIG):
    """Returns the one-line error of `mllmsubj train`, which exits with 2."""
    monkeypatch.setattr(main, "_set_up", lambda: None)
    words = [f"--config={config}", f"--workdir={workdir}", *flags]
    with pytest.raises(SystemExit) as stopped:
        main.main(["mllmsubj", "train", *words])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mllmsubj: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


MISTAKES = {
    "no config file": (["--config=nowhere.py"], ["nowhere.py", "not there"]),
    "unknown key": (["--config.train.batch_sise=4"], ["train.batch_sise", "batch_size"]),
    "mesh": (["--config.mesh.fsdp=3"], ["mesh", "'fsdp': 3", "8 devices"]),
    "batch": (["--config.train.batch_size=12"], ["train.batch_size 12", "(8)", "such as 16"]),
    "empty batch": (["--config.train.batch_size=0"], ["train.batch_size is 0", "at least 1"]),
    "no such data": (["--config.data.source=nowhere.jsonl"], ["source 'nowhere.jsonl' is not there", "toyworld"]),
    "no weights": (["--config.train.weights="], ["train.weights is empty", "--config.train.weights=DIR"]),
    "no such weights": (["--config.train.weights=nowhere"], ["nowhere"]),
    "no such start": (["--config.train.start_from=nowhere"], ["train.start_from is 'nowhere'", "finished workdir"]),
    "long prompts": (["--config.data.prompt_tokens=9000"], ["data.prompt_tokens is 9000", "at most 1024, lower it"]),
    "no steps": (["--config.train.stage1.steps=0", "--config.train.stage2.steps=0"], ["nothing to train"]),
    "no log": (["--config.log.every_steps=0"], ["log.every_steps is 0", "at least 1"]),
}


def test_train_missing_data(tmp_path, monkeypatch, capsys):
    """The workdir is not created if the data source does not exist."""
    refused(capsys, monkeypatch, tmp_path / "run", "--config.data.source=nowhere.jsonl")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", MISTAKES)
def test_train_invalid_config(tmp_path, monkeypatch, capsys, case):
    """The error is one line; neither the config nor a base checkpoint is written to the workdir."""
    flags, says = MISTAKES[case]
    line = refused(capsys, monkeypatch, tmp_path / "run", *flags)
    for word in says:
        assert word in line
    assert not (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / "base").exists()


def test_train_invalid_workdir(tmp_path, monkeypatch, capsys):
    """The workdir is a file, cannot be written, is in use, or has another config."""
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in refused(capsys, monkeypatch, tmp_path / "file")
    assert "cannot write workdir" in refused(capsys, monkeypatch, tmp_path / "file" / "below")
    assert "cannot write workdir /proc/" in refused(capsys, monkeypatch, "/proc/mllmsubj")
    with open_workdir(tmp_path / "used", config()):
        line = refused(capsys, monkeypatch, tmp_path / "used")
        assert f"another run is using {tmp_path / 'used'} (process {os.getpid()})" in line
    line = refused(capsys, monkeypatch, tmp_path / "used", "--config.train.batch_size=16")
    assert "contains a run with another config: train.batch_size: 8 there, 16 here" in line


def test_train_nonfinite_updates(tmp_path, monkeypatch):
    """The training stops after `max_nonfinite_steps` such updates in a row and saves its state and batch."""
    rates = (("dla/.*", 1e30), (".*/lora_[ab]", 1e30))
    stage = dict(train__stage2__learning_rates=rates, train__stage2__warmup_steps=0, train__stage2__steps=20)
    says = r"^3 updates in a row had NaN or Inf and were skipped, up to step (\d+); state and batch are in (.*); start"
    with pytest.raises(UserError, match=says) as error:
        train_here(monkeypatch, tmp_path, train__stage1__steps=0, train__max_nonfinite_steps=3, **stage)
    step, folder = re.match(says, str(error.value)).groups()
    state = read(Path(folder) / "state", "state")
    assert state["state['step']"] == int(step)
    assert state["state['nonfinite']"] == 3
    with np.load(Path(folder) / "batch_0.npz") as batch:
        assert batch["target"].shape == (8, 32, 32, 3)
        assert len(set(batch["example"].tolist())) == 8
    assert [line["updates_skipped"] for line in metrics(tmp_path)][-1] == 1.0


def manifest(folder, examples, broken):
    """Writes image pairs, the first `broken` of them truncated, and returns the path of their manifest."""
    folder.mkdir()
    lines = []
    for i in range(examples):
        data = encoded(noise(i))
        (folder / f"{i}.jpg").write_bytes(data[: len(data) // 3] if i < broken else data)
        lines.append(
            json.dumps(dict(reference=f"{i}.jpg", target=f"{i}.jpg", prompt=f"number {i}", width=48, height=32))
        )
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return str(folder / "pairs.jsonl")


def test_train_unreadable_examples(tmp_path, monkeypatch, caplog):
    """Unreadable examples are skipped, counted and logged; more than `data.max_skipped` of them end the training."""
    source = manifest(tmp_path / "data", 24, broken=2)
    train_here(monkeypatch, tmp_path / "run", data__source=source, data__max_skipped=0.5, **ONE_STAGE)
    counts = [line["examples_skipped"] for line in metrics(tmp_path / "run")]
    assert counts == sorted(counts)
    assert counts[-1] >= 2
    named = [message for message in caplog.messages if message.startswith("skipped: ")]
    assert len(named) == 2
    assert any(message.startswith("skipped: pairs.jsonl:1, reference 1 cannot be read") for message in named)
    monkeypatch.setattr(hooks, "MIN_EXAMPLES", 1)
    with pytest.raises(UserError, match=r"\d of \d+ examples cannot be used, more than data.max_skipped \(0.01\)"):
        train_here(monkeypatch, tmp_path / "other", data__source=source, **ONE_STAGE)


def test_train_start_from_stage1(tmp_path, monkeypatch):
    """Stage 2 starts from the stage 1 of another training; the DLA is frozen with `None` in `learning_rates`."""
    frozen = (("dla/.*", None), (".*/lora_[ab]", 1e-3))
    train_here(monkeypatch, tmp_path / "one", train__stage1__steps=4, train__stage2__steps=0)
    changes = dict(train__start_from=str(tmp_path / "one"), train__stage2__learning_rates=frozen)
    before = read(tmp_path / "one" / "model" / "params", "")
    train_here(monkeypatch, tmp_path / "two", **ONE_STAGE, **changes)
    after = read(tmp_path / "two" / "model" / "params", "")
    assert after.keys() == before.keys()
    for path, array in after.items():
        apart = np.abs(array - before[path]).max()
        assert apart == 0.0 if path.startswith("['dla']") else 0.0 < apart < 4 * 1.2e-3, path


@pytest.mark.parametrize("writes", ["profile", pytest.param("everything", marks=pytest.mark.slow)])
def test_train_subprocess(tmp_path, writes):
    """Stderr has only mllmsubj's lines; a profile, samples and TensorBoard files are written if the config has them."""
    asked, everything = ("log.profile_steps=2", "log.profile_start=1"), writes == "everything"
    if everything:
        asked += ("log.tensorboard=True", "evals.samples.every_steps=2")
    process = start(tmp_path, "train.stage1.steps=0", "train.stage2.steps=4", *asked)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert out == f"{tmp_path / 'model'}: generate images with mllmsubj generate --checkpoint={tmp_path} …\n"
    assert [line for line in err.splitlines() if not line.startswith(("mllmsubj: ", "stage "))] == []
    assert re.search(r"mllmsubj: first step after [\d.]+ s \((cold|warm): \d+ of \d+ programs", err)
    assert metrics(tmp_path)[0]["first_step_seconds"] > 0
    assert "first_step_seconds" not in metrics(tmp_path)[1]
    first = metrics(tmp_path)[0]
    assert {"learning_rate/dla", "learning_rate/transformer", "grad_norm", "update_norm", "param_norm"} <= first.keys()
    assert first["update_norm"] < first["param_norm"]
    assert first["trainable_params"] == sum(array.size for array in read(tmp_path / "model" / "params", "").values())
    with Image.open(tmp_path / "samples" / "batch-target-1.png") as image:
        assert image.size == (32, 8 * 32)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    if everything:
        assert list((tmp_path / "tensorboard").iterdir())
        assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
            *(f"batch-{name}-1.png" for name in ("references", "target", "tiles")),
            "samples-2.png",
            "samples-4.png",
        ]
        with Image.open(tmp_path / "samples" / "samples-4.png") as picture:
            assert picture.size == (3 * 32, 2 * 32)


def test_compilation_cache_location(tmp_path, monkeypatch):
    """The compilation cache is in the workdir, unless JAX_COMPILATION_CACHE_DIR is set."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for named, kept in (None, f"{tmp_path}/run/compiled"), ("gs://bucket/compiled", "gs://bucket/compiled"):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        if named:
            monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
        main._set_up()
        main.use_compilation_cache(tmp_path / "run")
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == kept


HELD_UP = f"""
import sys, time
from mllmsubj.cli import main
from mllmsubj.train.checkpointing import Checkpoints
wait = Checkpoints.wait
Checkpoints.wait = lambda self: (wait(self), time.sleep(60) if self._terminated else None)
main.main(["mllmsubj", "train", "--config={CONFIG}", f"--workdir={{sys.argv[1]}}", *sys.argv[2:]])
"""


@pytest.mark.slow
def test_train_grace_period_exceeded(tmp_path):
    """A save that exceeds `grace_seconds` is aborted with exit code 143; the previous checkpoint is complete."""
    flags = [
        f"train.weights={weights()}",
        "train.stage1.steps=0",
        "train.stage2.steps=2000",
        "checkpoint.grace_seconds=0.5",
        "checkpoint.every_steps=2",
    ]
    command = [sys.executable, "-c", HELD_UP, str(tmp_path), *(f"--config.{flag}" for flag in flags)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), **PIPES)
    wait_for_step(process, 4)
    wait_for_save(process, tmp_path)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the save took longer than 0.5 s of grace; the one before it stays" in err
    assert time.monotonic() - began < 30
    assert saves(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


FILLED_UP = f"""
import os, sys
from pathlib import Path
from mllmsubj.cli import main
from mllmsubj.train.hooks import Saves
save, workdir = Saves.__call__, Path(sys.argv[1])
def fill(self, step, state, batch):
    if step == 5:
        self._checkpoints.wait()
        free = os.statvfs(workdir)
        (workdir.parent / "ballast").write_bytes(bytes(max(free.f_bavail * free.f_frsize - 40_000, 0)))
    save(self, step, state, batch)
Saves.__call__ = fill
main.main(["mllmsubj", "train", "--config={CONFIG}", f"--workdir={{workdir}}", *sys.argv[2:]])
"""


@pytest.mark.slow
def test_train_disk_full(small_disk, monkeypatch, caplog):
    """The error is one line; with free space, the training resumes from the previous checkpoint."""
    workdir, steps = small_disk / "run", ("train.stage1.steps=0", "train.stage2.steps=12")
    flags = [f"--config.{flag}" for flag in (f"train.weights={weights()}", *steps)]
    command = [sys.executable, "-c", FILLED_UP, str(workdir), *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), **PIPES)
    out, err = process.communicate(timeout=900)
    assert (out, process.returncode) == ("", 2)
    usual = "^stage |compiled |first step after|absl:Waiting for previous save"  # the last on a busy machine
    said = [line for line in err.splitlines() if not re.search(usual, line)]
    assert len(said) == 1, err
    assert re.match(
        r"mllmsubj: error: cannot save .*No space left on device; older checkpoints there are complete", said[0]
    )
    (small_disk / "ballast").unlink()
    assert saves(workdir)[-1] == 4
    caplog.set_level("INFO", "mllmsubj")
    train_here(monkeypatch, workdir, train__stage1__steps=0, train__stage2__steps=12)
    assert "resumes from step 4" in caplog.messages
    assert saves(workdir)[-1] == 12
    assert [line["step"] for line in metrics(workdir)] == list(range(1, 13))
