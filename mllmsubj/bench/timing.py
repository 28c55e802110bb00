"""Alternating measurement, so that temporary noise affects all contestants equally."""

import statistics
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm


def alternate(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of `repeats` calls of each, in turn, after one warm-up call each; calls must block."""
    for run in contestants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in tqdm(range(repeats), unit="round", disable=None, leave=False):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: Mapping[str, list[float]], ours: str, peer: str) -> dict[str, object]:
    """Returns medians, and the median of the rounds' ratios ours / peer; below 1, ours is faster."""
    ratios = [a / b for a, b in zip(seconds[ours], seconds[peer], strict=True)]
    return {
        "median_seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "ratio": round(statistics.median(ratios), 4),
        "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "rounds": len(ratios),
    }
