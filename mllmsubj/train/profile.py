"""A profile of a few early steps, on request, for TensorBoard's profile plugin and xprof."""

import logging
from pathlib import Path

import jax

from mllmsubj.config.train import LogConfig
from mllmsubj.typing import PyTree

log = logging.getLogger("mllmsubj")


class Profiler:
    """Traces `profile_steps` steps from the one that is `profile_start` after this start; a run may end inside."""

    def __init__(self, config: LogConfig, workdir: str | Path, process_index: int) -> None:
        self._folder = Path(workdir) / "profile"
        first, count = config.profile_start, config.profile_steps
        self._span = range(first, first + count) if process_index == 0 else range(0)
        self.running = False

    def before_step(self, done: int, pending: PyTree = None) -> None:
        """Called before each step, `done` counting from this start; `pending` is what the last step returned.

        It is waited for at both ends of the profile, so that it holds whole steps and no others.
        """
        if self.running != (done in self._span):
            jax.block_until_ready(pending)
            self._stop() if self.running else self._begin()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self._stop()

    def _begin(self) -> None:
        jax.profiler.start_trace(self._folder)
        self.running = True

    def _stop(self) -> None:
        self.running = False
        jax.profiler.stop_trace()
        log.info("profile of %d steps in %s", len(self._span), self._folder)
