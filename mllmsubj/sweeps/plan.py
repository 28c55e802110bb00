"""Runs of a sweep: their overrides, the training that each needs, and the record of them in a workdir."""

import json
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mllmsubj.checkpoints.format import config_text, reason
from mllmsubj.config.load import find_config, from_file
from mllmsubj.config.overrides import Overrides
from mllmsubj.errors import UserError
from mllmsubj.io import replacing
from mllmsubj.sweeps.names import as_plain, run_name
from mllmsubj.train.workdir import forbidden_changes

EVALUATION_ONLY = ("sampling.", "evals.")
"""Prefixes of keys that affect evaluation but not training; runs that differ only in these share a training."""
RECORD = "sweep.json"


@dataclass(frozen=True)
class SweepRun:
    """One set of overrides, evaluated once."""

    name: str
    overrides: Overrides
    training: str
    """Name of the run whose model is evaluated: the one with these overrides, apart from `EVALUATION_ONLY` keys."""

    @property
    def training_overrides(self) -> Overrides:
        """Overrides that apply in training."""
        return _training_overrides(self.overrides)

    @property
    def evaluation_overrides(self) -> Overrides:
        """Overrides that apply in evaluation only."""
        return {key: value for key, value in self.overrides.items() if key not in self.training_overrides}


@dataclass(frozen=True)
class Record:
    """Record of a sweep in its workdir, stored as `sweep.json`."""

    sweep: str
    """Name of the sweep file, without folder and extension."""
    checkpoint: str | None
    """Checkpoint that all runs evaluate; None: runs train their own."""
    config: ConfigDict
    """Config of the run without overrides."""
    runs: tuple[SweepRun, ...]


def load_sweep(file: str, config: ConfigDict) -> list[Overrides]:
    """Returns the runs from `get_sweep(config)` of a sweep file, which is given by its path or a shipped one's name.

    Raises UserError if there are no runs or the file cannot be loaded.
    """
    path = find_config(file, "sweeps")
    runs = from_file(path, f"sweep file {file!r}", lambda names: list(names["get_sweep"](config)))
    if not runs:
        raise UserError(f"sweep file {file!r} yields no runs")
    if wrong := [run for run in runs if not (isinstance(run, dict) and all(isinstance(key, str) for key in run))]:
        raise UserError(f"sweep file {file!r} yields {wrong[0]!r}; a run is a dict from a config's keys to values")
    return [{key: as_plain(value) for key, value in run.items()} for run in runs]


def plan(sweep: Iterable[Overrides], keys: Collection[str]) -> tuple[SweepRun, ...]:
    """Returns the runs in order; `keys`: all keys of the config. Raises UserError if two runs are the same."""
    runs: dict[str, SweepRun] = {}
    for overrides in sweep:
        name = run_name(overrides, keys)
        if name in runs:
            raise UserError(f"the sweep has run {name} twice; every run must differ from the others")
        runs[name] = SweepRun(name, overrides, run_name(_training_overrides(overrides), keys))
    return tuple(runs.values())


def read_record(workdir: Path) -> Record:
    """Returns the record in a workdir; raises UserError if the folder is not a sweep's."""
    path = workdir / RECORD
    if not path.is_file():
        raise UserError(f"{workdir} holds no sweep: it has no {RECORD}")
    try:
        said = json.loads(path.read_text())
        runs = tuple(
            SweepRun(run["name"], {key: as_plain(value) for key, value in run["overrides"].items()}, run["training"])
            for run in said["runs"]
        )
        return Record(said["sweep"], said["checkpoint"], ConfigDict(said["config"]), runs)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a sweep's: {type(error).__name__}: {error}") from error


def check_record(workdir: Path, record: Record) -> None:
    """Raises UserError if the folder contains another sweep, or the same one with another config; names the keys."""
    if not (workdir / RECORD).exists():
        return
    there = read_record(workdir)
    old, new = (f"{one.sweep} of {one.checkpoint or 'its own trainings'}" for one in (there, record))
    if old != new:
        raise UserError(f"{workdir} holds the sweep {old}, this is {new}; give another workdir")
    if wrong := forbidden_changes(there.config, record.config):
        raise UserError(f"{workdir} holds a sweep over another config: {wrong}; give another workdir")


def write_record(workdir: Path, record: Record) -> None:
    """Writes the record to the workdir; raises UserError if it cannot be written."""
    said: Mapping[str, Any] = {
        "sweep": record.sweep,
        "checkpoint": record.checkpoint,
        "runs": [{"name": r.name, "overrides": r.overrides, "training": r.training} for r in record.runs],
        "config": json.loads(config_text(record.config)),
    }
    try:
        with replacing(workdir / RECORD) as partial:
            partial.write_text(json.dumps(said, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write workdir {workdir}: {reason(error)}") from error


def value_of(config: ConfigDict, key: str) -> Any:
    """Returns the value at a dotted key, with lists as tuples, or None if there is no such key."""
    node: Any = config
    for name in key.split("."):
        with suppress(AttributeError, KeyError, TypeError):
            node = node[name]
            continue
        return None
    return as_plain(node)


def _training_overrides(overrides: Overrides) -> Overrides:
    return {key: value for key, value in overrides.items() if not key.startswith(EVALUATION_ONLY)}
