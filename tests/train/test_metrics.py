"""Sums of what steps return, and the numbers that they become."""

import math

import jax
import numpy as np
import pytest

from mllmsubj.train.metrics import Totals
from mllmsubj.train.modes import NAMES
from mllmsubj.train.step import BINS, TIME_BINS, TOWERS
from tests.small import small_batch, small_step


def step_metrics(losses, bins, modes, bad=0, skipped=0):
    """What a step of these rows returns."""
    rows = np.asarray(losses, np.float32)
    by = [np.stack([np.bincount(at, rows, n), np.bincount(at, minlength=n)]) for at, n in ((bins, 10), (modes, 4))]
    total = dict(loss_sum=rows.sum(), count=np.float32(len(rows)), by_time=by[0], by_mode=by[1])
    return total | dict(skipped=np.int32(skipped), grad_norm=np.float32(2.0 + bad), bad=np.float32(bad))


def test_means_over_steps_then_anew():
    totals = Totals(BINS)
    totals.add(step_metrics([1.0, 3.0], [0, 9], [0, 2], skipped=1))
    totals.add(step_metrics([5.0, 7.0], [9, 9], [0, 3], skipped=2))
    numbers = totals.scalars()
    assert numbers.pop("grad_norm") == 2.0
    assert numbers == {
        "loss": 4.0,
        "updates_left_out": 0.0,
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


def test_an_update_that_was_left_out_is_counted_and_no_mean():
    totals = Totals(BINS)
    totals.add(step_metrics([1.0], [4], [1]))
    totals.add(step_metrics([math.nan], [4], [1], bad=1))
    assert totals.bad == 1
    numbers = totals.scalars()
    assert (numbers["loss"], numbers["loss_t/0.4-0.5"], numbers["updates_left_out"]) == (1.0, 1.0, 1.0)
    totals.add(step_metrics([2.0], [4], [1]))
    assert totals.bad == 0


def test_a_step_puts_each_row_s_loss_into_its_bins():
    step, state, frozen = small_step()
    batch = small_batch(8)
    batch.skipped[3] = 2
    encoded = jax.jit(step.encode)({name: frozen[name] for name in TOWERS}, batch)
    _, metrics = jax.jit(step.update)(state, frozen["transformer"], encoded)
    draws = jax.jit(step.draw)(jax.tree.map(lambda x: x[0], encoded), 0)
    times = np.bincount(np.minimum(np.asarray(draws.t) * TIME_BINS, TIME_BINS - 1).astype(int), minlength=TIME_BINS)
    np.testing.assert_array_equal(metrics["by_time"][1], times)
    np.testing.assert_array_equal(metrics["by_mode"][1], np.bincount(draws.mode, minlength=len(NAMES)))
    for name in ("by_time", "by_mode"):
        assert np.sum(metrics[name][0]) == pytest.approx(float(metrics["loss_sum"]), rel=1e-5)
    assert (metrics["count"], metrics["skipped"]) == (8, 2)
