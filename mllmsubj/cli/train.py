"""Trains both stages; the same command resumes exactly.

mllmsubj train --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE …]

Writes WORKDIR/checkpoints, WORKDIR/model (the result, for `mllmsubj generate --checkpoint=WORKDIR`), metrics.jsonl,
tensorboard/, samples/ and compiled/ (programs, for the next start; JAX_COMPILATION_CACHE_DIR replaces this folder). On
several hosts the same command runs on each.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mllmsubj.cli.files import workdir_path
from mllmsubj.cli.main import require_train_extra, start_logging, use_compilation_cache
from mllmsubj.config.overrides import apply_overrides, parse, split_overrides
from mllmsubj.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

PREEMPTED_EXIT_CODE = 143
"""Exit code after SIGTERM, as shells report it: not 0, so that a scheduler restarts the run."""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags; those of the config are added when its file is known."""
    flags.DEFINE_string("config", None, "config, by name or file, such as tiny", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run, made if missing", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Trains; exits with 143 after SIGTERM, when everything is saved."""
    config, workdir = prepare_run(values, argv, "train", config="tiny", workdir="DIR")

    from mllmsubj.evals.suite import evaluators
    from mllmsubj.train.loop import train

    with exit_if_preempted():
        train(config, workdir, evaluators)
    print(f"{workdir / 'model'}: generate images with mllmsubj generate --checkpoint={workdir} …")


def prepare_run(values: flags.FlagValues, argv: list[str], command: str, **needed: str) -> "tuple[ConfigDict, Path]":
    """Reads the flags of a command that trains, starts JAX, and returns the config with its overrides and the workdir.

    `needed`: flags that must be given, each with an example of its value. Raises UserError for one that is missing or
    wrong.
    """
    argv, overrides = split_overrides(argv)
    parse(values, argv)
    for name in needed:
        if not values[name].value:
            usage = " ".join(f"--{flag}={example}" for flag, example in needed.items())
            raise UserError(f"no {name}; start with mllmsubj {command} {usage}")
    workdir = workdir_path(values.workdir)
    require_train_extra("training needs")
    use_compilation_cache(workdir)
    start_logging()

    from mllmsubj.config.load import load_config
    from mllmsubj.parallel import multihost

    config = apply_overrides(load_config(values.config), overrides)
    multihost.start()
    return config, workdir


@contextmanager
def exit_if_preempted() -> Iterator[None]:
    """Exits with 143 if training, in its body, was preempted by SIGTERM and has saved everything."""
    from mllmsubj.train.hooks import Preempted

    _hush_orbax()
    try:
        yield
    except Preempted as stop:
        print(f"mllmsubj: {stop}", file=sys.stderr)
        sys.exit(PREEMPTED_EXIT_CODE)


def _hush_orbax() -> None:
    """Suppresses orbax's reports of writes that it canceled after one failed, as on a full disk.

    Each of hundreds would print a traceback, later and from any thread; the failure itself is raised as an exception.
    """
    logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
    before = sys.unraisablehook

    def hook(event: "sys.UnraisableHookArgs") -> None:
        if str(event.exc_value) != "Event loop is closed":
            before(event)

    sys.unraisablehook = hook
