"""The table and the plot of a sweep's results."""

import csv
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from mllmsubj.sweeps.plan import Record, plan
from mllmsubj.sweeps.plot import ACCENT, draw
from mllmsubj.sweeps.summary import as_csv, as_text, summarize


@pytest.fixture
def summary(tmp_path):
    """Five runs: two finished, one trained but not evaluated, one in training and one not started."""
    config = ConfigDict({"a": {"x": 5}, "sampling": {"tau1": 0.9}})
    runs = plan([{"a.x": 1}, {"sampling.tau1": 0.5}, {"a.x": 2}, {"a.x": 3}, {"a.x": 4}], ["a.x", "sampling.tau1"])
    for name, metrics in (
        ("x=1", {"benchmark": "b", "checkpoint": "c", "seed": 0, "examples": 8, "loss/all": 2.0, "accuracy": 0.5}),
        ("tau1=0.5", {"seed": 0, "examples": 8, "loss/all": 1.5, "accuracy": 0.25, "copy_chance": None}),
    ):
        (tmp_path / name / "eval").mkdir(parents=True)
        (tmp_path / name / "eval" / "metrics.json").write_text(json.dumps(metrics))
    for name, lines in (
        ("x=1", [{"step": 9, "loss": 0.75}, {"step": 9, "loss/all": 3}]),
        ("x=2", [{"step": 9, "loss": 0.1}]),
        ("x=3", [{"step": 4, "loss": 0.1}]),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"ste')
    (tmp_path / "x=2" / "model").mkdir()
    (tmp_path / "x=2" / "model" / "config.json").touch()
    return summarize(tmp_path, Record("s", None, config, runs))


def test_as_text(summary):
    assert [line.split() for line in as_text(summary).splitlines()] == [
        ["x", "tau1", "loss/all", "accuracy", "train/loss", "status"],
        ["1", "0.9", "2.000", "0.5000*", "0.7500", "finished"],
        ["5", "0.5", "1.500*", "0.2500", "–", "finished"],
        ["2", "0.9", "–", "–", "–", "trained"],
        ["3", "0.9", "–", "–", "–", "at", "step", "4"],
        ["4", "0.9", "–", "–", "–", "not", "begun"],
    ]


def test_as_csv(summary):
    rows = list(csv.DictReader(as_csv(summary).splitlines()))
    assert [row["run"] for row in rows] == ["x=1", "tau1=0.5", "x=2", "x=3", "x=4"]
    assert rows[0] == {
        "run": "x=1",
        "status": "finished",
        "a.x": "1",
        "sampling.tau1": "0.9",
        "loss/all": "2.0",
        "accuracy": "0.5",
        "train/loss": "0.75",
    }
    assert rows[4]["loss/all"] == ""


def test_draw(summary):
    """Each metric has a panel; the best run's dot and number are colored where the two finished runs differ."""
    picture = np.asarray(draw(summary))
    accent = (picture == [int(ACCENT[i : i + 2], 16) for i in (1, 3, 5)]).all(-1)
    assert picture.shape[1] > 3 * 500
    columns = np.flatnonzero(accent.any(axis=0))
    assert (np.diff(columns) > 100).sum() >= 1
    assert 2 * 100 < accent.sum() < 3000
