"""A sweep's runs: which they are, what each has to train, and what a workdir says of them."""

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

UNTRAINED = ("sampling.", "evals.")
"""Keys that change how a trained model is judged, not how it is trained: runs that differ in these share a training."""
RECORD = "sweep.json"


@dataclass(frozen=True)
class Run:
    """One set of overrides, judged once."""

    name: str
    overrides: Overrides
    training: str
    """Name of the run whose training is judged: this one's, or that of its overrides without `UNTRAINED` ones."""

    @property
    def trained(self) -> Overrides:
        """The overrides that are trained with."""
        return _trained(self.overrides)

    @property
    def judged(self) -> Overrides:
        """The others."""
        return {key: value for key, value in self.overrides.items() if key not in self.trained}


@dataclass(frozen=True)
class Record:
    """What a sweep's workdir remembers, as `sweep.json`."""

    sweep: str
    """Name of its file, without folder and ending."""
    checkpoint: str | None
    """The one that all runs judge; None: they train their own."""
    config: ConfigDict
    """Of the run without overrides."""
    runs: tuple[Run, ...]


def load_sweep(file: str, config: ConfigDict) -> list[Overrides]:
    """What `get_sweep(config)` of a sweep file, or of a shipped one by its name, yields.

    Raises UserError if that is nothing or the file cannot be loaded.
    """
    path = find_config(file, "sweeps")
    runs = from_file(path, f"sweep file {file!r}", lambda names: list(names["get_sweep"](config)))
    if not runs:
        raise UserError(f"sweep file {file!r} yields no runs")
    if wrong := [run for run in runs if not (isinstance(run, dict) and all(isinstance(key, str) for key in run))]:
        raise UserError(f"sweep file {file!r} yields {wrong[0]!r}; a run is a dict from a config's keys to values")
    return [{key: as_plain(value) for key, value in run.items()} for run in runs]


def plan(sweep: Iterable[Overrides], keys: Collection[str]) -> tuple[Run, ...]:
    """The runs in order; `keys`: all of the config's. Raises UserError for two with the same overrides."""
    runs: dict[str, Run] = {}
    for overrides in sweep:
        name = run_name(overrides, keys)
        if name in runs:
            raise UserError(f"the sweep has run {name} twice; every run must differ from the others")
        runs[name] = Run(name, overrides, run_name(_trained(overrides), keys))
    return tuple(runs.values())


def read_record(workdir: Path) -> Record:
    """Raises UserError if the folder is not a sweep's."""
    path = workdir / RECORD
    if not path.is_file():
        raise UserError(f"{workdir} holds no sweep: it has no {RECORD}")
    try:
        said = json.loads(path.read_text())
        runs = tuple(
            Run(run["name"], {key: as_plain(value) for key, value in run["overrides"].items()}, run["training"])
            for run in said["runs"]
        )
        return Record(said["sweep"], said["checkpoint"], ConfigDict(said["config"]), runs)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a sweep's: {type(error).__name__}: {error}") from error


def check_record(workdir: Path, record: Record) -> None:
    """Raises UserError if the folder holds another sweep, or the same one over another config, naming the keys."""
    if not (workdir / RECORD).exists():
        return
    there = read_record(workdir)
    old, new = (f"{one.sweep} of {one.checkpoint or 'its own trainings'}" for one in (there, record))
    if old != new:
        raise UserError(f"{workdir} holds the sweep {old}, this is {new}; give another workdir")
    if wrong := forbidden_changes(there.config, record.config):
        raise UserError(f"{workdir} holds a sweep over another config: {wrong}; give another workdir")


def write_record(workdir: Path, record: Record) -> None:
    """Raises UserError if it cannot be written."""
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
    """The value at a dotted key, lists as tuples; None where there is none."""
    node: Any = config
    for name in key.split("."):
        with suppress(AttributeError, KeyError, TypeError):
            node = node[name]
            continue
        return None
    return as_plain(node)


def _trained(overrides: Overrides) -> Overrides:
    return {key: value for key, value in overrides.items() if not key.startswith(UNTRAINED)}
