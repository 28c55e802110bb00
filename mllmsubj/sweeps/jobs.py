"""Commands run as separate processes, one or several at once, each after the one that it depends on."""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path
from types import FrameType
from typing import TextIO

from mllmsubj.errors import UserError

POLL_SECONDS = 0.2
"""Seconds between two polls of the processes."""
STOP_CODES = (143, -signal.SIGTERM, -signal.SIGKILL)
"""Exit codes of processes stopped by a signal: training saves and exits with 143, others are terminated."""


def _false() -> bool:
    return False


def _noop() -> None:
    pass


@dataclass(frozen=True)
class Job:
    """One command with its dependency and completion check."""

    name: str
    """Description for users, such as "train RUN"."""
    words: tuple[str, ...]
    log: Path
    """File that its output is appended to."""
    after: "Job | None" = None
    """Job that must be done before this one starts."""
    is_done: Callable[[], bool] = _false
    """Returns whether there is nothing left to do; called when the job could start."""
    is_busy: Callable[[], bool] = _false
    """Returns whether a process of another sweep still runs the job, such as after that sweep was killed."""
    prepare: Callable[[], None] = _noop
    """Function that is called right before the job starts."""


@dataclass(frozen=True)
class Outcome:
    """Result of running the jobs."""

    failures: dict[str, str]
    """Name of a job -> reason of its failure, on one line. Jobs that depend on it are not started."""
    signal: int | None
    """First signal that stopped the jobs, or None."""


def run_jobs(
    jobs: Sequence[Job],
    parallel: int,
    before: tuple[str, ...] = (),
    unit: str = "runs done",
    stream: TextIO | TextIOBase | None = None,
) -> Outcome:
    """Runs the jobs, at most `parallel` at once, and prints every change of progress to `stream` (default stderr).

    `before`: words before every command, such as those that run a module; `unit`: what the progress line calls finished
    jobs that no other depends on. SIGINT and SIGTERM are forwarded to the processes as SIGTERM, on which training
    saves; a second signal kills them. The processes have sessions of their own, so that Ctrl-C on a terminal does not
    also reach them directly. Raises UserError, after stopping all processes, if a command or its log cannot be opened.
    """
    return _Runner(jobs, parallel, before, unit, stream or sys.stderr)()


class _Runner:
    def __init__(
        self, jobs: Sequence[Job], parallel: int, before: tuple[str, ...], unit: str, stream: TextIO | TextIOBase
    ) -> None:
        self._jobs, self._parallel, self._before, self._unit, self._stream = jobs, parallel, before, unit, stream
        self._waiting = list(jobs)
        self._running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
        self._done: set[str] = set()
        self._dropped: set[str] = set()
        self._failures: dict[str, str] = {}
        self._signals: list[int] = []
        self._last_line = ""

    def __call__(self) -> Outcome:
        with self._forwarding():
            try:
                while self._running or (self._waiting and not self._signals):
                    self._reap()
                    if not self._signals:
                        self._start()
                    self._report()
                    if self._running or self._waiting:
                        time.sleep(POLL_SECONDS)
            finally:  # processes are left only after an error
                self._signal(signal.SIGTERM)
                for _, process in self._running.values():
                    process.wait()
        return Outcome(self._failures, self._signals[0] if self._signals else None)

    def _start(self) -> None:
        """Starts the jobs that can start; done ones are only counted, and those after a failure are dropped."""
        busy = 0
        for job in list(self._waiting):
            if job.after is not None and job.after.name in self._dropped:
                self._waiting.remove(job)
                self._dropped.add(job.name)
            elif job.after is not None and job.after.name not in self._done:
                continue
            elif job.is_done():
                self._waiting.remove(job)
                self._done.add(job.name)
            elif len(self._running) + busy < self._parallel:
                if job.is_busy():
                    busy += 1
                else:
                    self._waiting.remove(job)
                    self._running[job.name] = job, _started(job, self._before)
        if self._signals:  # a signal may have come before the newest process was registered
            self._signal(signal.SIGTERM)

    def _reap(self) -> None:
        for name, (job, process) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[name]
            if code == 0:
                self._done.add(name)
                continue
            self._dropped.add(name)
            if not (self._signals and code in STOP_CODES):
                self._failures[name] = _failure_reason(code, job.log)

    def _report(self) -> None:
        last = [job for job in self._jobs if not any(other.after is job for other in self._jobs)]
        parts = [f"{sum(job.name in self._done for job in last)} of {len(last)} {self._unit}", *self._running]
        if not self._running and self._waiting and not self._signals:
            parts.append("waits for a process that an earlier sweep left")
        if self._failures:
            parts.append(f"{len(self._failures)} failed")
        line = f"mllmsubj: {' · '.join(parts)}"
        if line != self._last_line:
            self._last_line = line
            print(line, file=self._stream, flush=True)

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        def forward(number: int, _: FrameType | None) -> None:
            self._signal(signal.SIGKILL if self._signals else signal.SIGTERM)
            self._signals.append(number)

        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signal(self, number: int) -> None:
        for _, process in self._running.values():
            process.send_signal(number)


def last_line(log: Path) -> str:
    """Returns the last non-empty line of a command's log."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _started(job: Job, before: tuple[str, ...]) -> subprocess.Popen[bytes]:
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.prepare()
        with job.log.open("a") as log:
            log.write(f"$ {shlex.join(job.words)}\n")
            log.flush()
            return subprocess.Popen(
                (*before, *job.words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise UserError(f"cannot {job.name}: {error.filename}: {error.strerror or error}") from error


def _failure_reason(code: int, log: Path) -> str:
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {last_line(log)} (all of it: {log})"
