"""Code shared by `sweep` and `reproduce`: runs are checked before the first begins, then run in a workdir."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from mllmsubj.config.overrides import Overrides, apply_overrides
from mllmsubj.errors import UserError

if TYPE_CHECKING:
    from mllmsubj.sweeps.jobs import Job, Outcome
    from mllmsubj.sweeps.plan import Record, SweepRun


def check_runs(
    config: ConfigDict, sweep: Sequence[Overrides], given: Collection[str] = (), checkpoint: str | None = None
) -> "tuple[SweepRun, ...]":
    """Returns the runs of a sweep after checking that each config is valid and differs from all others.

    `config`: config without overrides; `given`: keys that no run may set; `checkpoint`: checkpoint that all runs
    evaluate without training. Raises UserError naming run and key.
    """
    from mllmsubj.checkpoints.format import config_text
    from mllmsubj.config.load import flat
    from mllmsubj.config.schema import Experiment
    from mllmsubj.sweeps.names import word
    from mllmsubj.sweeps.plan import EVALUATION_ONLY, plan, value_of

    runs = plan(sweep, flat(config))
    names: dict[str, str] = {}
    for number, one in enumerate(runs, 1):
        here = f"run {number} of the sweep ({one.name})"
        if twice := set(given) & one.overrides.keys():
            raise UserError(f"{here} sets {min(twice)}; leave out --config.{min(twice)}")
        if checkpoint and one.training_overrides:
            sections = " and ".join(section.rstrip(".") for section in EVALUATION_ONLY)
            raise UserError(
                f"{here} sets {min(one.training_overrides)}; with --checkpoint only keys of {sections} can be set"
            )
        try:
            made = apply_overrides(
                config.copy_and_resolve_references(), [word(key, value) for key, value in one.overrides.items()]
            )
            Experiment.from_config(made)
        except (UserError, flags.Error) as error:
            raise UserError(f"{here}: {error}") from error
        for key, value in one.overrides.items():
            if (read := value_of(made, key)) != value:
                raise UserError(f"{here}: {key} is {value!r}, which the command line would read as {read!r}")
        other = names.setdefault(config_text(made), one.name)
        if other != one.name:
            raise UserError(f"{here} is the same as {other}; every run must differ from the others")
    return runs


def run_sweep(
    workdir: Path, record: "Record", jobs: "Sequence[Job]", parallel: int, before: tuple[str, ...], unit: str
) -> "Outcome":
    """Writes the sweep's record to the workdir and runs the jobs while the workdir is locked; see `run_jobs`.

    Raises UserError if the workdir cannot be written.
    """
    from mllmsubj.sweeps.jobs import run_jobs
    from mllmsubj.sweeps.plan import write_record
    from mllmsubj.train.workdir import locked

    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write workdir {workdir}: {error.strerror or error}") from error
    with locked(workdir):
        write_record(workdir, record)
        return run_jobs(jobs, parallel, before, unit)
