"""Metrics of training steps, accumulated between log points."""

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
    """Names of a binned metric: its sums and counts [2, n] become means "GROUP/NAME", one for each of n bins."""

    group: str
    names: tuple[str, ...]


class MetricAccumulator:
    """Accumulates the metrics of steps; names have groups as in TensorBoard, such as "loss_t/0.3-0.4"."""

    def __init__(self, bins: Mapping[str, BinnedMetrics], examples: int = 0, skipped: int = 0) -> None:
        """Starts without steps.

        `bins`: binned metrics that a step returns, by key. `examples`, `skipped`: counts before the run was resumed.
        """
        self._bins = bins
        self.examples, self.skipped = examples, skipped
        """Counts of the whole run, including restarts."""
        self.nonfinite = 0
        """Number of consecutive updates with NaN or Inf, as of the last accumulated step."""
        self._pending: deque[Mapping[str, Any]] = deque()
        self._learning_rates: dict[str, float] = {}
        self._clear()

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds the metrics of one step, without waiting for them.

        They are "count", "skipped", "nonfinite", "loss_sum", those of MEANS, "learning_rate/…" and the binned metrics.
        """
        self._pending.append(metrics)

    def settle(self, behind: int = 0) -> None:
        """Waits for the metrics of all steps but the last `behind`, and accumulates them."""
        while len(self._pending) > behind:
            self._accumulate(jax.device_get(dict(self._pending.popleft())))

    def scalars(self) -> dict[str, float]:
        """Returns the means since the last call and the last learning rates; bins without examples are omitted."""
        self.settle()
        loss, count = np.sum(self._sums, axis=0) if self._sums else (math.nan, 0.0)
        numbers = {
            "loss": float(loss / count) if count else math.nan,
            **{name: float(np.mean(values)) if values else math.nan for name, values in self._values.items()},
            **self._learning_rates,
            "updates_skipped": float(self._left_out),
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
