"""What steps return, summed up between log points, as named numbers."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mllmsubj.train.modes import NAMES
from mllmsubj.train.step import TIME_BINS


class Totals:
    """Sums over steps; names follow TensorBoard's groups: "loss", "loss_t/0.3-0.4", "loss_mode/both", …"""

    def __init__(self) -> None:
        self.examples = self.skipped = 0
        """Of the whole run: kept over restarts by the loop."""
        self.bad = 0
        """Updates in a row with NaN or Inf, as of the last step that was added."""
        self._clear()

    def add(self, metrics: Mapping[str, Any]) -> None:
        """One step's, as `TrainStep.update` returns them; waits until they are there."""
        found = jax.device_get(dict(metrics))
        self.examples += int(found["count"])
        self.skipped += int(found["skipped"])
        self.bad = int(found["bad"])
        if self.bad:
            self._left_out += 1
            return
        self._sums.append((float(found["loss_sum"]), float(found["count"])))
        self._norms.append(float(found["grad_norm"]))
        self._by_time += found["by_time"]
        self._by_mode += found["by_mode"]

    def scalars(self) -> dict[str, float]:
        """Means since the last call; a bin that no example fell into is left out."""
        loss, count = np.sum(self._sums, axis=0) if self._sums else (math.nan, 0.0)
        numbers = {
            "loss": float(loss / count) if count else math.nan,
            "grad_norm": float(np.mean(self._norms)) if self._norms else math.nan,
            "updates_left_out": float(self._left_out),
            "examples_skipped": float(self.skipped),
        }
        bins = [f"{i / TIME_BINS:.1f}-{(i + 1) / TIME_BINS:.1f}" for i in range(TIME_BINS)]
        for group, names, (sums, counts) in (("t", bins, self._by_time), ("mode", NAMES, self._by_mode)):
            for name, total, number in zip(names, sums, counts, strict=True):
                if number:
                    numbers[f"loss_{group}/{name}"] = float(total / number)
        self._clear()
        return numbers

    def _clear(self) -> None:
        self._sums: list[tuple[float, float]] = []
        self._norms: list[float] = []
        self._left_out = 0
        self._by_time, self._by_mode = np.zeros((2, TIME_BINS)), np.zeros((2, len(NAMES)))
