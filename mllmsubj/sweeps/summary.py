"""Results of a sweep's runs, as a text table and as `summary.csv`."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mllmsubj.config.load import flat
from mllmsubj.sweeps.names import short_key
from mllmsubj.sweeps.plan import Record, SweepRun, value_of

FINISHED = "finished"
FINAL_LOSS = "train/loss"
"""Metric for the loss in the last entry of the training log."""
NO_METRICS = ("seed", "examples")
"""Numbers in metrics.json that describe the evaluation and are not metrics."""
LOWER = re.compile(r"loss|pose_copy")
"""Metrics for which lower is better."""
CHANCE = re.compile(r"_chance$")
"""Metrics at chance level, which are not results of the run."""


@dataclass(frozen=True)
class RunSummary:
    """Settings and metrics of one run."""

    run: str
    status: str
    settings: dict[str, Any]
    """Dotted key -> value, of each key that the sweep sets."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """One row per run, in the sweep's order."""

    rows: tuple[RunSummary, ...]
    labels: dict[str, str]
    """Dotted key -> short label."""

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics of all rows."""
        return list(dict.fromkeys(name for row in self.rows for name in row.metrics))

    def best(self, metric: str) -> float | None:
        """Returns the best value of a metric, or None if all values are equal or the metric has no better direction."""
        found = {row.metrics[metric] for row in self.rows if metric in row.metrics}
        if len(found) < 2 or better(metric) is None:
            return None
        return min(found) if better(metric) == "lower" else max(found)


def better(metric: str) -> Literal["lower", "higher"] | None:
    """Returns the better direction of a metric, derived from its name, or None."""
    if CHANCE.search(metric):
        return None
    return "lower" if LOWER.search(metric) else "higher"


def shown(value: float) -> str:
    """Returns the value with four significant digits."""
    return f"{value:#.4g}"


def summarize(workdir: Path, record: Record) -> Summary:
    """Returns a summary of the results that each run has written so far."""
    keys = list(dict.fromkeys(key for run in record.runs for key in run.overrides))
    rows = tuple(_row(workdir, record, run, keys) for run in record.runs)
    known = flat(record.config)
    return Summary(rows, {key: short_key(key, known) for key in keys})


def as_csv(summary: Summary) -> str:
    """Returns the summary as CSV, with full keys and all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys, metrics = list(summary.labels), summary.metrics
    writer.writerow(["run", "status", *keys, *metrics])
    for row in summary.rows:
        values = [row.settings[key] for key in keys] + [row.metrics.get(name, "") for name in metrics]
        writer.writerow([row.run, row.status, *values])
    return text.getvalue()


def as_text(summary: Summary) -> str:
    """Returns the summary as a table for a terminal; the best value of each metric has a star."""
    metrics, unfinished = summary.metrics, any(row.status != FINISHED for row in summary.rows)
    table = [[*summary.labels.values(), *metrics, *(["status"] if unfinished else [])]]
    for row in summary.rows:
        cells = [str(row.settings[key]) for key in summary.labels]
        cells += [_cell(row.metrics.get(name), summary.best(name)) for name in metrics]
        table.append([*cells, *([row.status] if unfinished else [])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table) + "\n"


def _cell(value: float | None, best: float | None) -> str:
    return "–" if value is None else f"{shown(value)}{'*' if value == best else ''}"


def _row(workdir: Path, record: Record, run: SweepRun, keys: Sequence[str]) -> RunSummary:
    training = workdir / run.training
    metrics = _numbers(workdir / run.name / "eval" / "metrics.json")
    status, reports = FINISHED if metrics else "not begun", _reports(training / "metrics.jsonl")
    if not metrics and record.checkpoint is None and reports:
        trained = (training / "model" / "config.json").is_file()
        status = "trained" if trained else f"at step {reports[-1]['step']}"
    elif metrics and reports and math.isfinite(loss := reports[-1]["loss"]):
        metrics[FINAL_LOSS] = loss
    settings = {key: run.overrides.get(key, value_of(record.config, key)) for key in keys}
    return RunSummary(run.name, status, settings, metrics)


def _numbers(file: Path) -> dict[str, float]:
    """Returns the finite metrics of an evaluation, empty if there was none; others are null in the file."""
    found = json.loads(file.read_text()) if file.is_file() else {}
    return {name: float(v) for name, v in found.items() if type(v) in (int, float) and name not in NO_METRICS}


def _reports(file: Path) -> list[dict[str, Any]]:
    """Returns the entries of the training log in order, without a last line that is incomplete."""
    lines = file.read_text().splitlines() if file.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [line for line in found if isinstance(line.get("loss"), float)]
