"""Reproduces the paper's tables in miniature, on toyworld.

mllmsubj reproduce --config=FILE[:VARIANT] --workdir=DIR [--tables=NAME,…] [--limit=N] [--parallel=N]
[--config.KEY=VALUE …]

Trains every variant of the config, evaluates it on toyworld's held-out subjects, and reports for each row whether the
paper's order holds. Each run is a separate process in WORKDIR/NAME, as in `mllmsubj sweep`; the same command resumes
after an interruption. Writes WORKDIR/report.html, which opens offline, and results.csv of the finished runs; the exit
code is 1 if a run failed.

The command trains seven times and generates --limit images (by default 10,000, all held-out ones) with each of the 14
variants. For a shorter run, give --limit=500 --config.train.stage1.steps=N --config.train.stage2.steps=N, or
--tables=sampler,last_stage, which need one training.
"""

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from mllmsubj.cli.files import workdir_path
from mllmsubj.cli.main import require_train_extra, use_compilation_cache
from mllmsubj.cli.sweep import FAILED, say
from mllmsubj.config.overrides import apply_overrides, parse, split_overrides
from mllmsubj.errors import UserError, nearest
from mllmsubj.io import writing
from mllmsubj.sweeps.execute import check_runs, run_sweep

if TYPE_CHECKING:
    from mllmsubj.config.schema import Experiment
    from mllmsubj.sweeps.plan import Record
    from mllmsubj.toyworld.paper_tables.report import RowResult, TableResult
    from mllmsubj.toyworld.paper_tables.tables import Row, Table

BENCHMARK = "toyworld"
ALL = 10_000
"""Number of held-out examples."""
LEAD = (
    "Every variant of the config is trained from the same frozen weights and evaluated on subjects, combinations and "
    "prompts of toyworld that training never saw. The paper's numbers come from another model and other images: only "
    "their order is compared."
)


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags; those of the config are added when its file is known."""
    flags.DEFINE_string("config", None, "config file that every variant starts from", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the runs, made if missing", flag_values=values)
    flags.DEFINE_list(
        "tables", [], "branches, connection, stages, sampler, last_stage; all by default", flag_values=values
    )
    flags.DEFINE_integer(
        "limit", ALL, "held-out examples that each variant is evaluated on", 1, ALL, flag_values=values
    )
    flags.DEFINE_integer(
        "parallel", 1, "runs at the same time; they share the machine's devices", 1, flag_values=values
    )
    flags.DEFINE_bool("dry_run", False, "print the commands without running them", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Trains and evaluates the missing variants, then writes the tables; exits with 1 if a run failed."""
    argv, common = split_overrides(argv)
    parse(values, argv)
    for name, example in (("config", "tiny"), ("workdir", "DIR")):
        if not values[name].value:
            raise UserError(f"no {name}; start with mllmsubj reproduce --{name}={example} …")
    workdir = workdir_path(values.workdir)
    require_train_extra("training needs")

    from mllmsubj.config.load import load_config
    from mllmsubj.sweeps.commands import LOCAL_PREFIX, Commands, make_jobs
    from mllmsubj.sweeps.plan import Record, check_record
    from mllmsubj.toyworld.paper_tables.tables import runs

    config = apply_overrides(load_config(values.config), common)
    tables = _tables(values.tables, config)
    record = Record("reproduce", None, config, check_runs(config, runs(tables)))
    check_record(workdir, record)
    commands = Commands(workdir, values.config, None, tuple(common), BENCHMARK, values.limit)
    jobs = make_jobs(record, commands)
    if values.dry_run:
        for job in jobs:
            if not job.is_done():
                print(shlex.join(job.words))
        return
    use_compilation_cache(workdir)
    outcome = run_sweep(workdir, record, jobs, values.parallel, LOCAL_PREFIX, "variants done")
    say(outcome)
    _write(workdir, config, tables, record)
    if outcome.failures:
        sys.exit(FAILED)


def _tables(names: list[str], config: ConfigDict) -> "list[Table]":
    from mllmsubj.toyworld.paper_tables.tables import TABLES

    if wrong := [name for name in names if name not in TABLES]:
        raise UserError(
            f"unknown table {wrong[0]!r}{nearest(wrong[0], TABLES)}; there are {', '.join(TABLES)}: --tables=branches"
        )
    return [make(config) for name, make in TABLES.items() if not names or name in names]


def _write(workdir: Path, config: ConfigDict, tables: "list[Table]", record: "Record") -> None:
    """Writes the report and the CSV file, and prints the tables."""
    from mllmsubj.checkpoints.format import config_text
    from mllmsubj.config.schema import Experiment
    from mllmsubj.toyworld.benchmark.benchmark import first_prompts
    from mllmsubj.toyworld.paper_tables.report import EXAMPLES, TableResult, as_csv, as_text, page

    experiment = Experiment.from_config(config)
    prompts = first_prompts(experiment, EXAMPLES)
    filled = [
        TableResult(table, tuple(_found(workdir, record, row, prompts) for row in table.rows)) for table in tables
    ]
    facts = _facts(experiment, filled)
    with writing(workdir / "results.csv") as partial:
        partial.write_text(as_csv(filled))
    with writing(workdir / "report.html") as partial:
        title = "The paper's tables in miniature"
        partial.write_text(page(title, LEAD, filled, facts, config_text(config)), encoding="utf-8")
    print(as_text(filled), end="")
    print(workdir / "report.html")


def _found(workdir: Path, record: "Record", row: "Row", prompts: list[str]) -> "RowResult | None":
    """Returns the results of a row's evaluation, or None if it has not run."""
    import numpy as np
    from PIL import Image

    from mllmsubj.toyworld.paper_tables.report import RowResult

    name = next(run.name for run in record.runs if run.overrides == row.overrides)
    folder = workdir / name / "eval"
    if not (folder / "metrics.json").is_file():
        return None
    metrics = {k: v for k, v in json.loads((folder / "metrics.json").read_text()).items() if isinstance(v, int | float)}
    with Image.open(folder / "samples.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    side = pixels.shape[1] // 3  # squares: reference, generated image, target
    return RowResult(metrics, pixels.reshape(-1, side, *pixels.shape[1:])[: len(prompts)], prompts)


def _facts(experiment: "Experiment", filled: "list[TableResult]") -> dict[str, str]:
    train, sampling = experiment.train, experiment.sampling
    examples = {int(found.metrics["examples"]) for each in filled for _, found in each.rows}
    return {
        "training": f"{train.stage1.steps} + {train.stage2.steps} steps of {train.batch_size}, "
        f"from {train.weights or 'no weights'}, seed {experiment.seed}",
        "judged by": f"{', '.join(map(str, sorted(examples))) or 'no'} of {ALL} held-out examples",
        "sampler": f"{sampling.steps} steps, but for what a row says τ {sampling.tau1:g}, "
        f"{sampling.tau2:g}, {sampling.all_guidance}",
        "made by": f"mllmsubj {version('mllmsubj')}",
    }
