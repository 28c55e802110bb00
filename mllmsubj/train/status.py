"""One line on the terminal that says where a run is."""

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from io import TextIOBase
from types import MappingProxyType
from typing import Any, TextIO

from mllmsubj.train.throughput import Timer

RECENT = 10
"""Reports whose speed the ETA goes by."""
CLEAR = "\r\x1b[K"
"""To the line's start, and delete what stands there."""
NOTHING: Mapping[str, float] = MappingProxyType({})


class Status:
    """Rewritten in place on a terminal, a plain line each time elsewhere; nothing on other processes than the first.

    A context: while it is open, what the logger "mllmsubj" says comes above the line.
    """

    def __init__(self, stages: tuple[int, int], process_index: int, stream: TextIOBase | None = None) -> None:
        """`stages`: steps of each; `stream`: by default stderr."""
        self._stages = stages
        self._stream: TextIOBase | TextIO = stream or sys.stderr
        self._shown = process_index == 0
        self._in_place = self._shown and self._stream.isatty()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._line = ""
        self._lock = threading.RLock()
        self._handlers: list[logging.StreamHandler[Any]] = []
        self._own = logging.StreamHandler(_Above(self))

    def update(
        self, step: int, clock: Timer, loss: float | None = None, figures: Mapping[str, float] = NOTHING
    ) -> None:
        """After `step` steps of both stages together; `clock` and `figures` are the meter's, no figures at a start."""
        if "step_seconds" in figures:
            self._recent.append(figures["step_seconds"])
        if self._shown:
            left = self.seconds_left(step, clock)
            line = " · ".join(_parts(step, self._stages, loss, figures, left))
            with self._lock:
                self._line = line
                self._stream.write(self._drawn() if self._in_place else line + "\n")
                self._stream.flush()

    def seconds_left(self, step: int, clock: Timer) -> float | None:
        """At the speed of the last reports or, right after a restart, of the run until then; None before any.

        Pauses take the share of time that they took so far.
        """
        if self._recent:
            speed = sum(self._recent) / len(self._recent)
        elif clock.steps:
            speed = clock.seconds / clock.steps
        else:
            return None
        pauses = clock.paused / clock.seconds if clock.seconds else 0.0
        return max(sum(self._stages) - step, 0) * speed * (1.0 + pauses)

    def __enter__(self) -> "Status":
        if self._in_place:
            logger: logging.Logger | None = logging.getLogger("mllmsubj")
            assert logger is not None
            if not logger.hasHandlers():
                logger.addHandler(self._own)
            while logger:
                found = [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]
                self._handlers += [handler for handler in found if handler.stream is self._stream]
                logger = logger.parent if logger.propagate else None
            for handler in self._handlers:
                handler.setStream(_Above(self))
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_place:
            for handler in self._handlers:
                handler.setStream(self._stream)
            self._handlers = []
            logging.getLogger("mllmsubj").removeHandler(self._own)
            with self._lock:
                self._stream.write("\n" if self._line else "")
                self._stream.flush()
                self._line = ""

    def print_above(self, text: str) -> None:
        """Whole lines, as a log record is, above the status line."""
        with self._lock:
            self._stream.write(CLEAR + text + (self._drawn() if text.endswith("\n") else ""))
            self._stream.flush()

    def _drawn(self) -> str:
        """Never longer than the terminal is wide: a wrapped line could not be rewritten."""
        columns = 0
        with suppress(OSError, ValueError):
            columns = os.get_terminal_size(self._stream.fileno()).columns
        room = (columns or 80) - 1
        return CLEAR + (self._line if len(self._line) <= room else self._line[: room - 1] + "…")


class _Above:
    """What a log handler writes to while a status line is shown."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def write(self, text: str) -> None:
        self._status.print_above(text)

    def flush(self) -> None:
        """`print_above` has done it."""


def duration(seconds: float) -> str:
    """Two units at most: "45 s", "12 min", "3 h 12 min", "2 d 3 h"."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def _parts(
    step: int, stages: tuple[int, int], loss: float | None, figures: Mapping[str, float], left: float | None
) -> list[str]:
    stage = 1 if 0 < stages[0] >= step else 2  # of the step that was just done
    parts = [f"stage {stage}/2", f"step {step:,}/{sum(stages):,}"]
    if loss is not None:
        parts.append(f"loss {loss:.3g}")
    if "examples_per_sec" in figures:
        parts.append(f"{figures['examples_per_sec']:.3g} examples/s")
    if "tflops_per_sec_per_device" in figures:
        share = f" ({figures['mfu']:.0%})".replace("%", " %") if "mfu" in figures else ""
        parts.append(f"{figures['tflops_per_sec_per_device']:.3g} TFLOP/s{share}")
    if "input_wait_share" in figures:
        parts.append(f"waits {100 * figures['input_wait_share']:.1f} %")
    if left is not None:
        parts.append(f"ETA {duration(left)}")
    return parts
