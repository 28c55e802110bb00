"""Optional profile of a few early steps, for TensorBoard's profile plugin and xprof."""

import logging
from pathlib import Path

import jax

from mllmsubj.config.train import LogConfig
from mllmsubj.typing import PyTree

log = logging.getLogger("mllmsubj")


class Profiler:
    """Traces `profile_steps` steps after the first `profile_start` of this process; a context manager."""

    def __init__(self, config: LogConfig, workdir: str | Path, process_index: int) -> None:
        """Prepares a trace in `WORKDIR/profile` on process 0, and none on other processes."""
        self._folder = Path(workdir) / "profile"
        first, count = config.profile_start, config.profile_steps
        self._span = range(first, first + count) if process_index == 0 else range(0)
        self.running = False

    def before_step(self, done: int, pending: PyTree = None) -> None:
        """Starts or stops the trace; called before each step.

        `done`: steps that this process has done. `pending`: output of the last step, for which the method waits at
        both ends of the trace, so that the trace contains complete steps only.
        """
        if self.running != (done in self._span):
            jax.block_until_ready(pending)
            self._stop() if self.running else self._begin()

    def __enter__(self) -> "Profiler":
        """Returns the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops a running trace."""
        if self.running:
            self._stop()

    def _begin(self) -> None:
        jax.profiler.start_trace(self._folder)
        self.running = True

    def _stop(self) -> None:
        self.running = False
        jax.profiler.stop_trace()
        log.info("profile of %d steps in %s", len(self._span), self._folder)
