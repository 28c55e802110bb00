"""Processes: their order, how many at once, what fails, what a signal does."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from mllmsubj.errors import UserError
from mllmsubj.sweeps.jobs import Job, run_jobs
from tests.environment import ROOT


def job(folder, name, code, **more):
    """A short Python program; it says its name and the time when it starts and ends."""
    program = f"import sys, time, signal\nprint('start', time.time(), flush=True)\n{code}\nprint('end', time.time())"
    return Job(name, (sys.executable, "-c", program), folder / name / "log.txt", **more)


def times(log):
    """Of its start and end."""
    return [float(line.split()[1]) for line in log.read_text().splitlines() if line.startswith(("start", "end"))]


def run(jobs, parallel=1):
    said = io.StringIO()
    return run_jobs(jobs, parallel, stream=said), said.getvalue().splitlines()


def test_one_after_another_and_two_at_once(tmp_path):
    def overlap(folder, parallel):
        first, second = jobs = [job(folder, name, "time.sleep(0.5)") for name in "ab"]
        outcome, said = run(jobs, parallel)
        assert (outcome.failures, outcome.signal) == ({}, None)
        assert said[-1] == "mllmsubj: 2 of 2 runs done"
        return times(second.log)[0] < times(first.log)[1]

    assert not overlap(tmp_path / "one", 1)
    assert overlap(tmp_path / "two", 2)


def test_what_fails_is_reported_and_what_waits_for_it_never_begins(tmp_path):
    bad = job(tmp_path, "bad", "print('first'); print('the reason'); sys.exit(3)")
    killed = job(tmp_path, "killed", "import os; os.kill(os.getpid(), signal.SIGKILL)")
    never, good = job(tmp_path, "never", "", after=bad), job(tmp_path, "good", "")
    outcome, said = run([bad, never, killed, good])
    assert outcome.failures["bad"].startswith("exit code 3: the reason (all of it: ")
    assert outcome.failures["killed"].startswith("killed by SIGKILL: start ")
    assert outcome.failures.keys() == {"bad", "killed"}
    assert good.log.exists()
    assert not never.log.exists()
    assert said[-1] == "mllmsubj: 1 of 3 runs done · 2 failed"


def test_what_is_done_is_left_alone(tmp_path):
    first = job(tmp_path, "first", "", is_done=lambda: True)
    second = job(tmp_path, "second", "", after=first)
    outcome, said = run([first, second])
    assert not outcome.failures
    assert not first.log.exists()
    assert second.log.exists()
    assert said[-1] == "mllmsubj: 1 of 1 runs done"


def test_waits_for_what_an_earlier_sweep_left(tmp_path):
    until = time.time() + 0.6
    only = job(tmp_path, "only", "", is_busy=lambda: time.time() < until)
    _, said = run([only])
    assert times(only.log)[0] >= until
    assert "waits for a process that an earlier sweep left" in said[0]


def test_a_program_that_is_not_there(tmp_path):
    missing = Job("go", ("no-such-program", "x"), tmp_path / "log.txt")
    with pytest.raises(UserError, match="cannot go: no-such-program: No such file"):
        run([job(tmp_path, "runs", "time.sleep(60)"), missing], parallel=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_processes_as_sigterm(tmp_path, number):
    """The first child saves and says 143, as training does; the second does not listen: a second signal kills it."""
    program = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from mllmsubj.sweeps.jobs import run_jobs
        from tests.sweeps.test_jobs import job
        saves = "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))"
        deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
        ready = "print('ready', flush=True); time.sleep(60)"
        folder = Path({str(tmp_path)!r})
        jobs = [job(folder, name, code + chr(10) + ready) for name, code in (("saves", saves), ("deaf", deaf))]
        outcome = run_jobs([*jobs, job(folder, "later", "")], 2)
        print(outcome.failures, outcome.signal)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    logs = {name: tmp_path / name / "log.txt" for name in ("saves", "deaf", "later")}
    wait_for(lambda: all(says(logs[name], "ready") for name in ("saves", "deaf")), process)
    os.kill(process.pid, number)
    wait_for(lambda: says(logs["saves"], "saved"), process)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=30)
    assert out.strip() == f"{{}} {int(number)}"
    assert not logs["later"].exists()


def says(log, text):
    return log.exists() and any(line == text for line in log.read_text().splitlines())


def wait_for(condition, process, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.returncode
        assert time.time() < end
        time.sleep(0.05)
