"""Progress of a run on the terminal."""

import io
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mllmsubj.train.throughput import Timer

RECENT = 10
"""Number of the last reports that determine the ETA."""
NO_FIGURES: Mapping[str, float] = MappingProxyType({})


class Status:
    """Shows a tqdm bar on a terminal, and prints a line for each update elsewhere; only process 0 writes.

    A context manager: while it is open, log records appear above the bar.
    """

    def __init__(
        self, stages: tuple[int, int], process_index: int, stream: TextIO | io.TextIOBase | None = None
    ) -> None:
        """Prepares the bar; `stages`: number of steps of each stage; `stream`: stderr if None."""
        self._stages, self._shown = stages, process_index == 0
        self._stream: Any = stream or sys.stderr
        self._bar: tqdm | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._opened = ExitStack()

    def __enter__(self) -> "Status":
        """Shows the bar."""
        if self._shown and self._stream.isatty():
            self._opened.enter_context(logging_redirect_tqdm())
            self._bar = tqdm(
                total=sum(self._stages), file=self._stream, dynamic_ncols=True, bar_format="{desc}", mininterval=0
            )
            self._opened.callback(self._bar.close)
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the bar."""
        self._opened.close()

    def update(
        self, step: int, clock: Timer, loss: float | None = None, figures: Mapping[str, float] = NO_FIGURES
    ) -> None:
        """Shows that `step` steps of both stages are done.

        `clock` and `figures` are those of `Throughput`; there are no figures at the start of a process.
        """
        if "step_seconds" in figures:
            self._recent.append(figures["step_seconds"])
        if not self._shown:
            return
        line = " · ".join(_fields(step, self._stages, loss, figures, self.seconds_left(step, clock)))
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.n = step
            self._bar.set_description_str(line)

    def seconds_left(self, step: int, clock: Timer) -> float | None:
        """Returns the estimated time to the end, or None before the first step.

        It uses the speed of the last reports or, right after a resume, that of the run until then; pauses are assumed
        to take the same share of time as before.
        """
        if self._recent:
            seconds = sum(self._recent) / len(self._recent)
        elif clock.steps:
            seconds = clock.seconds / clock.steps
        else:
            return None
        pauses = clock.paused / clock.seconds if clock.seconds else 0.0
        return max(sum(self._stages) - step, 0) * seconds * (1.0 + pauses)


def _fields(
    step: int, stages: tuple[int, int], loss: float | None, figures: Mapping[str, float], left: float | None
) -> list[str]:
    stage = 1 if 0 < stages[0] >= step else 2  # the stage of the last step
    fields = [f"stage {stage}/2", f"step {step:,}/{sum(stages):,}"]
    if loss is not None:
        fields.append(f"loss {loss:.3g}")
    if "examples_per_sec" in figures:
        fields.append(f"{figures['examples_per_sec']:.3g} examples/s")
    if "tflops_per_sec_per_device" in figures:
        mfu = f" ({100 * figures['mfu']:.0f} % MFU)" if "mfu" in figures else ""
        fields.append(f"{figures['tflops_per_sec_per_device']:.3g} TFLOP/s{mfu}")
    if "input_wait_share" in figures:
        fields.append(f"input wait {100 * figures['input_wait_share']:.1f} %")
    if left is not None:
        fields.append(f"ETA {tqdm.format_interval(left)}")
    return fields
