"""Processes of a sweep: order, parallelism, failures and signals."""

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
    """Returns a job that runs a short Python program, which prints the time when it starts and ends."""
    program = f"import sys, time, signal\nprint('start', time.time(), flush=True)\n{code}\nprint('end', time.time())"
    return Job(name, (sys.executable, "-c", program), folder / name / "log.txt", **more)


def times(log):
    """Returns the times of its start and end."""
    return [float(line.split()[1]) for line in log.read_text().splitlines() if line.startswith(("start", "end"))]


def run(jobs, parallel=1):
    said = io.StringIO()
    return run_jobs(jobs, parallel, stream=said), said.getvalue().splitlines()


def test_run_jobs_parallel(tmp_path):
    def overlap(folder, parallel):
        first, second = jobs = [job(folder, name, "time.sleep(0.5)") for name in "ab"]
        outcome, said = run(jobs, parallel)
        assert (outcome.failures, outcome.signal) == ({}, None)
        assert said[-1] == "mllmsubj: 2 of 2 runs done"
        return times(second.log)[0] < times(first.log)[1]

    assert not overlap(tmp_path / "one", 1)
    assert overlap(tmp_path / "two", 2)


def test_run_jobs_failure(tmp_path):
    """Failures are reported, and jobs that depend on a failed one are not started."""
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


def test_run_jobs_already_done(tmp_path):
    """Finished jobs are not run again, and jobs that depend on them are run."""
    first = job(tmp_path, "first", "", is_done=lambda: True)
    second = job(tmp_path, "second", "", after=first)
    outcome, said = run([first, second])
    assert not outcome.failures
    assert not first.log.exists()
    assert second.log.exists()
    assert said[-1] == "mllmsubj: 1 of 1 runs done"


def test_run_jobs_busy(tmp_path):
    """A job starts after the process that an earlier sweep has left running."""
    until = time.time() + 0.6
    only = job(tmp_path, "only", "", is_busy=lambda: time.time() < until)
    _, said = run([only])
    assert times(only.log)[0] >= until
    assert "waits for a process that an earlier sweep left" in said[0]


def test_run_jobs_missing_program(tmp_path):
    missing = Job("go", ("no-such-program", "x"), tmp_path / "log.txt")
    with pytest.raises(UserError, match="cannot go: no-such-program: No such file"):
        run([job(tmp_path, "runs", "time.sleep(60)"), missing], parallel=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_jobs_signal(tmp_path, number):
    """SIGINT and SIGTERM are forwarded to the processes as SIGTERM, and a second signal kills them.

    The first process saves and exits with 143, as training does; the second one ignores SIGTERM.
    """
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
