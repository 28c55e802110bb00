"""Sums of the metrics of steps, and the scalars that are computed from them."""

import math

import numpy as np

from mllmsubj.train.metrics import MEANS, MetricAccumulator
from mllmsubj.train.step import BINS


def step_metrics(losses, bins, modes, nonfinite=0, skipped=0):
    """Returns the metrics of a step with these rows."""
    rows = np.asarray(losses, np.float32)
    by = [np.stack([np.bincount(at, rows, n), np.bincount(at, minlength=n)]) for at, n in ((bins, 10), (modes, 4))]
    total = dict(loss_sum=rows.sum(), count=np.float32(len(rows)), by_time=by[0], by_mode=by[1])
    return (
        total
        | dict(skipped=np.int32(skipped), nonfinite=np.float32(nonfinite))
        | dict(dict.fromkeys(MEANS, np.float32(2.0 + nonfinite)), **{"learning_rate/dla": np.float32(0.25)})
    )


def test_metric_accumulator_means():
    """Scalars are means over the steps since they were last read."""
    totals = MetricAccumulator(BINS)
    totals.add(step_metrics([1.0, 3.0], [0, 9], [0, 2], skipped=1))
    totals.add(step_metrics([5.0, 7.0], [9, 9], [0, 3], skipped=2))
    numbers = totals.scalars()
    assert [numbers.pop(name) for name in MEANS] == [2.0] * 3
    assert numbers == {
        "loss": 4.0,
        "learning_rate/dla": 0.25,
        "updates_skipped": 0.0,
        "examples_skipped": 3.0,
        "loss_t/0.0-0.1": 1.0,
        "loss_t/0.9-1.0": 5.0,
        "loss_mode/both": 3.0,
        "loss_mode/vae": 3.0,
        "loss_mode/none": 7.0,
    }
    assert (totals.examples, totals.skipped) == (4, 3)
    again = totals.scalars()
    assert math.isnan(again["loss"])
    assert not any(name.startswith("loss_") for name in again)


def test_metric_accumulator_nonfinite_step():
    """A non-finite step is counted and left out of the means."""
    totals = MetricAccumulator(BINS)
    totals.add(step_metrics([1.0], [4], [1]))
    totals.add(step_metrics([math.nan], [4], [1], nonfinite=1))
    totals.settle(behind=1)
    assert (totals.nonfinite, totals.examples) == (0, 1)
    totals.settle()
    assert totals.nonfinite == 1
    numbers = totals.scalars()
    assert (numbers["loss"], numbers["loss_t/0.4-0.5"], numbers["updates_skipped"]) == (1.0, 1.0, 1.0)
    totals.add(step_metrics([2.0], [4], [1]))
    totals.settle()
    assert totals.nonfinite == 0
