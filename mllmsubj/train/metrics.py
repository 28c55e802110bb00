"""What steps return, summed up between log points, as named numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class BinnedMetrics:
    """What a step's metric of sums and counts, [2, n], becomes: "GROUP/NAME" for each of its n bins."""

    group: str
    names: tuple[str, ...]


class MetricAccumulator:
    """Sums over steps; names follow TensorBoard's groups: "loss", "loss_t/0.3-0.4", "loss_mode/both", …"""

    def __init__(self, bins: Mapping[str, BinnedMetrics]) -> None:
        """`bins`: of the metrics that a step returns besides the usual ones (see `add`), by their names there."""
        self._bins = bins
        self.examples = self.skipped = 0
        """Of the whole run: kept over restarts by the loop."""
        self.bad = 0
        """Updates in a row with NaN or Inf, as of the last step that was added."""
        self._clear()

    def add(self, metrics: Mapping[str, Any]) -> None:
        """One step's: "count", "skipped", "bad", "loss_sum", "grad_norm" and those with bins; waits for them."""
        found = jax.device_get(dict(metrics))
        self.examples += int(found["count"])
        self.skipped += int(found["skipped"])
        self.bad = int(found["bad"])
        if self.bad:
            self._left_out += 1
            return
        self._sums.append((float(found["loss_sum"]), float(found["count"])))
        self._norms.append(float(found["grad_norm"]))
        for name in self._bins:
            self._binned[name] += found[name]

    def scalars(self) -> dict[str, float]:
        """Means since the last call; a bin that no example fell into is left out."""
        loss, count = np.sum(self._sums, axis=0) if self._sums else (math.nan, 0.0)
        numbers = {
            "loss": float(loss / count) if count else math.nan,
            "grad_norm": float(np.mean(self._norms)) if self._norms else math.nan,
            "updates_left_out": float(self._left_out),
            "examples_skipped": float(self.skipped),
        }
        for key, bins in self._bins.items():
            for name, total, number in zip(bins.names, *self._binned[key], strict=True):
                if number:
                    numbers[f"{bins.group}/{name}"] = float(total / number)
        self._clear()
        return numbers

    def _clear(self) -> None:
        self._sums: list[tuple[float, float]] = []
        self._norms: list[float] = []
        self._left_out = 0
        self._binned = {name: np.zeros((2, len(bins.names))) for name, bins in self._bins.items()}
