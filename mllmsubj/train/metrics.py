"""Metrics of steps, accumulated between log points, as named numbers."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

MEANS = ("grad_norm", "update_norm", "param_norm")
"""Metrics of a step that are averaged over steps."""


@dataclass(frozen=True)
class BinnedMetrics:
    """What a step's metric of sums and counts, [2, n], becomes: "GROUP/NAME" for each of its n bins."""

    group: str
    names: tuple[str, ...]


class MetricAccumulator:
    """Sums over steps; names follow TensorBoard's groups: "loss", "loss_t/0.3-0.4", "loss_mode/both", …"""

    def __init__(self, bins: Mapping[str, BinnedMetrics], examples: int = 0, skipped: int = 0) -> None:
        """`bins`: of the binned metrics that a step returns, by their names there.

        `examples`, `skipped`: counts of the run before it was resumed.
        """
        self._bins = bins
        self.examples, self.skipped = examples, skipped
        """Of the whole run, over restarts."""
        self.nonfinite = 0
        """Updates in a row with NaN or Inf, as of the last step that was settled."""
        self._pending: deque[Mapping[str, Any]] = deque()
        self._learning_rates: dict[str, float] = {}
        self._clear()

    def add(self, metrics: Mapping[str, Any]) -> None:
        """One step's, without waiting for them: "count", "skipped", "nonfinite", "loss_sum", those of MEANS,
        "learning_rate/…", and those with bins."""
        self._pending.append(metrics)

    def settle(self, behind: int = 0) -> None:
        """Waits for the metrics of all steps but the last `behind`, and accumulates them."""
        while len(self._pending) > behind:
            self._accumulate(jax.device_get(dict(self._pending.popleft())))

    def scalars(self) -> dict[str, float]:
        """Means since the last call, and the last learning rates; a bin that no example fell into is left out."""
        self.settle()
        loss, count = np.sum(self._sums, axis=0) if self._sums else (math.nan, 0.0)
        numbers = {
            "loss": float(loss / count) if count else math.nan,
            **{name: float(np.mean(values)) if values else math.nan for name, values in self._values.items()},
            **self._learning_rates,
            "updates_left_out": float(self._left_out),
            "examples_skipped": float(self.skipped),
        }
        for key, bins in self._bins.items():
            for name, total, number in zip(bins.names, *self._binned[key], strict=True):
                if number:
                    numbers[f"{bins.group}/{name}"] = float(total / number)
        self._clear()
        return numbers

    def _accumulate(self, metrics: Mapping[str, Any]) -> None:
        self.examples += int(metrics["count"])
        self.skipped += int(metrics["skipped"])
        self.nonfinite = int(metrics["nonfinite"])
        self._learning_rates = {name: float(x) for name, x in metrics.items() if name.startswith("learning_rate/")}
        if self.nonfinite:
            self._left_out += 1
            return
        self._sums.append((float(metrics["loss_sum"]), float(metrics["count"])))
        for name in MEANS:
            self._values[name].append(float(metrics[name]))
        for name in self._bins:
            self._binned[name] += metrics[name]

    def _clear(self) -> None:
        self._sums: list[tuple[float, float]] = []
        self._values: dict[str, list[float]] = {name: [] for name in MEANS}
        self._left_out = 0
        self._binned = {name: np.zeros((2, len(bins.names))) for name, bins in self._bins.items()}
