"""Trains and evaluates every run of a sweep, and summarizes them.

mllmsubj sweep --config=FILE[:VARIANT] --sweep=FILE --workdir=DIR [--parallel=N] [--config.KEY=VALUE …]
mllmsubj sweep --checkpoint=DIR|tiny --sweep=FILE --workdir=DIR […]
mllmsubj sweep --workdir=DIR --summary

Each run is a separate process in WORKDIR/NAME, named after its overrides, with its output in log.txt and its evaluation
in eval/. Runs that differ only in `sampling` and `evals` share one training; with --checkpoint nothing is trained. The
same command keeps finished runs, resumes interrupted ones and repeats failed ones. The exit code is 1 if a run failed.
The summary of the finished runs is a table, summary.csv and summary.png.

--launch='COMMAND … --' passes the commands to a launcher instead, each appended to these words, in which {} becomes the
run's number. They are trainings, or evaluations of trainings whose result is in WORKDIR, so repeat the command when the
trainings are done. --dry_run prints the commands that would run.
"""

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from mllmsubj.cli.files import workdir_path
from mllmsubj.cli.main import require_train_extra, use_compilation_cache
from mllmsubj.config.overrides import apply_overrides, parse, split_overrides
from mllmsubj.errors import UserError
from mllmsubj.evals.benchmarks import check_benchmark, names
from mllmsubj.io import write_png, writing
from mllmsubj.sweeps.execute import check_runs, run_sweep

if TYPE_CHECKING:
    from mllmsubj.sweeps.jobs import Outcome

FAILED = 1
"""Exit code if a run failed."""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags; those of the config are added when its file is known."""
    flags.DEFINE_string("config", None, "config file that every run starts from", flag_values=values)
    flags.DEFINE_string("sweep", None, "sweep, by name or file, such as tau", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the sweep, made if missing", flag_values=values)
    flags.DEFINE_string(
        "checkpoint", None, "checkpoint to evaluate in every run, instead of training", flag_values=values
    )
    flags.DEFINE_integer(
        "parallel", 1, "runs at the same time; they share the machine's devices", 1, flag_values=values
    )
    flags.DEFINE_string("benchmark", "heldout", " or ".join(names()), flag_values=values)
    flags.DEFINE_integer("limit", None, "as of `mllmsubj evaluate`", 1, flag_values=values)
    flags.DEFINE_string("launch", None, "launcher that runs the commands", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "print the commands without running them", flag_values=values)
    flags.DEFINE_bool("summary", False, "only summarize finished runs", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Runs what is missing, then summarizes; exits with 1 if a run failed, 130 or 143 after SIGINT or SIGTERM."""
    argv, common = split_overrides(argv)
    parse(values, argv)
    workdir = _workdir(values.workdir)
    if not values.summary:
        _check(values)
        _run_missing(values, workdir, common)
    if values.summary or not values.dry_run:
        _summarize(workdir)


def _run_missing(values: flags.FlagValues, workdir: Path, common: list[str]) -> None:
    """Runs the missing runs, or prints their commands."""
    from mllmsubj.sweeps.commands import LOCAL_PREFIX, Commands, launched, make_jobs
    from mllmsubj.sweeps.plan import Record, check_record, load_sweep

    config = apply_overrides(_config(values), common)
    given = {each.removeprefix("--config.").partition("=")[0] for each in common}
    runs = check_runs(config, load_sweep(values.sweep, config), given, values.checkpoint)
    record = Record(Path(values.sweep).stem, values.checkpoint, config, runs)
    check_record(workdir, record)
    commands = Commands(workdir, values.config, values.checkpoint, tuple(common), values.benchmark, values.limit)
    jobs = make_jobs(record, commands)
    if values.launch:
        jobs = launched(jobs, values.launch)
    if values.dry_run:
        for job in jobs:
            if not job.is_done():
                print(shlex.join(job.words))
        return
    if not values.launch:
        use_compilation_cache(workdir)  # the runs share most compiled programs
    before, unit = ((), "commands handed over") if values.launch else (LOCAL_PREFIX, "runs done")
    outcome = run_sweep(workdir, record, jobs, values.parallel, before, unit)
    say(outcome)
    if outcome.failures:
        _summarize(workdir)
        sys.exit(FAILED)


def say(outcome: "Outcome") -> None:
    """Prints failed runs; exits if a signal stopped the sweep."""
    for name, why in outcome.failures.items():
        print(f"mllmsubj: cannot {name}: {why}", file=sys.stderr)
    if outcome.signal is not None:
        print("mllmsubj: stopped; run the same command to resume", file=sys.stderr)
        sys.exit(128 + outcome.signal)


def _workdir(name: str | None) -> Path:
    if not name:
        raise UserError("no workdir; start with mllmsubj sweep --config=tiny --sweep=tau --workdir=DIR")
    return workdir_path(name)


def _check(values: flags.FlagValues) -> None:
    """Raises UserError for mistakes in the flags."""
    if not values.sweep:
        raise UserError("no sweep; name its file, such as --sweep=tau")
    if bool(values.config) == bool(values.checkpoint):
        raise UserError(
            "give either --config=FILE, to train every run, or --checkpoint=DIR, to evaluate it in every run"
        )
    check_benchmark(values.benchmark)
    if values.launch and not values.dry_run:
        program = (shlex.split(values.launch) or [""])[0]
        if not shutil.which(program):
            raise UserError(f"cannot launch with {program!r}: there is no such program; --dry_run shows the commands")
    require_train_extra("training needs")


def _config(values: flags.FlagValues) -> ConfigDict:
    from mllmsubj.checkpoints.format import folder_of, read_config
    from mllmsubj.config.load import load_config

    return read_config(folder_of(values.checkpoint)) if values.checkpoint else load_config(values.config)


def _summarize(workdir: Path) -> None:
    from mllmsubj.sweeps.plan import read_record
    from mllmsubj.sweeps.plot import draw
    from mllmsubj.sweeps.summary import as_csv, as_text, summarize

    summary = summarize(workdir, read_record(workdir))
    print(as_text(summary), end="")
    with writing(workdir / "summary.csv") as partial:
        partial.write_text(as_csv(summary))
    if summary.metrics:
        write_png(draw(summary), workdir / "summary.png")
        print(workdir / "summary.png")
