"""Training on several processes, started by launch/local.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.environment import PIPES, ROOT
from tests.train.runs import arrays, distance, losses, metrics, saves, start, train_here, wait_for_step

STEPS = ("train.stage1.steps=0", "train.stage2.steps=20", "checkpoint.every_steps=100")
"""Overrides for runs in other processes; CHANGES are those for runs in this one, which also save at half time."""
CHANGES = dict(train__stage1__steps=0, train__stage2__steps=20, checkpoint__every_steps=10)
EVALS = ("evals.loss.every_steps=10", "evals.samples.every_steps=20")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Workdir of a run of 20 steps on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        train_here(patch, workdir, **CHANGES)
    return workdir


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def assert_same_run(workdir, alone):
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    assert len(losses(workdir)) == 20


@pytest.mark.parametrize("evals", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_train_two_processes_sigterm(tmp_path, alone, monkeypatch, evals):
    """After SIGTERM to one process, both save at one step and exit with 143; one device resumes to the same result.

    With evaluations, their metrics are those of one device, too.
    """
    every = 10 if evals else 0
    process = start(tmp_path / "two", *STEPS, f"evals.loss.every_steps={every}", processes=2)
    wait_for_step(process, 11, "0| ")
    subprocess.run(["kill", "-TERM", str(children(process)[1])], check=True)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 143, err
    said = [line for line in err.splitlines() if "saved at step" in line]
    [step] = saves(tmp_path / "two")
    assert sorted(said) == [
        f"{i}| mllmsubj: saved at step {step} of 20; run the same command to resume" for i in (0, 1)
    ]
    assert 11 <= step < 20

    train_here(monkeypatch, tmp_path / "two", **CHANGES, evals__loss__every_steps=every)
    assert_same_run(tmp_path / "two", alone)
    apart, path = distance(arrays(tmp_path / "two"), arrays(alone))
    assert apart < 5e-6, path
    if evals:
        train_here(monkeypatch, tmp_path / "one", **CHANGES, evals__loss__every_steps=every)
        judged = [evaluated(tmp_path / name) for name in ("two", "one")]
        for here, there in zip(*judged, strict=True):
            assert here["step"] == there["step"]
            assert here["loss/all"] == pytest.approx(there["loss/all"], rel=1e-5)


def evaluated(workdir):
    return [line for line in metrics(workdir) if "loss/all" in line]


@pytest.mark.slow
def test_train_resume_more_devices(tmp_path, monkeypatch, alone):
    """The second half of the run on one device is the same on eight devices."""
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    train_here(monkeypatch, tmp_path, devices=8, **CHANGES)
    assert_same_run(tmp_path, alone)
    apart, path = distance(arrays(tmp_path), arrays(alone))
    assert apart < 1e-6, path


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_train_devices(tmp_path, monkeypatch, alone, devices):
    train_here(monkeypatch, tmp_path, devices, **CHANGES)
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_train_processes_evals(tmp_path, alone, processes):
    process = start(tmp_path, *STEPS, *EVALS, processes=processes)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert_same_run(tmp_path, alone)
    assert (tmp_path / "samples" / "samples-20.png").is_file()


def launched(*words, processes=2):
    command = [sys.executable, "launch/local.py", f"--processes={processes}", "--", sys.executable, "-c", *words]
    return subprocess.Popen(command, cwd=ROOT, **PIPES)


def test_launcher_ranks():
    """The launcher numbers the processes and prefixes their lines with the number."""
    say = "import os, sys; print(os.environ['JAX_PROCESS_ID'], 'of', os.environ['JAX_NUM_PROCESSES']); sys.exit()"
    process = launched(say, processes=3)
    out, err = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == ["0| 0 of 3", "1| 1 of 3", "2| 2 of 3"]
    assert (err, process.returncode) == ("", 0)


def test_launcher_failure():
    """The launcher ends all processes when one fails, and exits with its status."""
    code = """
import os, sys, time
from launch import local
if os.environ["JAX_PROCESS_ID"] == "1":
    sys.exit(7)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", LAUNCH_SOON, code], cwd=ROOT, **PIPES)
    process.communicate(timeout=60)
    assert process.returncode == 7


LAUNCH_SOON = """
import sys
from launch import local
local.SECONDS_TO_END = 0.2
sys.exit(local.main(["--processes=2", "--", sys.executable, "-c", sys.argv[1]]))
"""


def test_launcher_signal():
    process = launched("import time; print('ready', flush=True); time.sleep(600)")
    for _ in range(2):
        assert process.stdout.readline().endswith("ready\n")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
