"""Evaluators of a config."""

import logging
from collections.abc import Callable
from typing import Any

from mllmsubj.errors import UserError
from mllmsubj.evals.held_out import held_out
from mllmsubj.evals.loss import HeldOutLoss
from mllmsubj.evals.samples import Samples
from mllmsubj.train.evaluator import Evaluator
from mllmsubj.train.setup import Setup

log = logging.getLogger("mllmsubj")

EVALUATORS: dict[str, Callable[..., Evaluator]] = {"loss": HeldOutLoss, "samples": Samples}
"""Section of the config's `evals` -> evaluator, in running order."""


def evaluators(setup: Setup) -> list[Evaluator]:
    """Returns the evaluators that run during training; none, with a warning, if there is no held-out data."""
    sections = _sections(setup)
    due = [name for name in EVALUATORS if sections[name].every_steps]
    if not due:
        return []
    try:
        data = held_out(setup.experiment)
    except UserError as error:
        log.warning("no evaluation: %s", error)
        return []
    return [EVALUATORS[name](setup, data, sections[name]) for name in due]


def all_evaluators(setup: Setup, seed: int) -> list[Evaluator]:
    """Returns all evaluators, with `seed` for their noise; raises UserError if there is no held-out data."""
    data, sections = held_out(setup.experiment), _sections(setup)
    return [make(setup, data, sections[name], seed) for name, make in EVALUATORS.items()]


def _sections(setup: Setup) -> dict[str, Any]:
    return {name: getattr(setup.experiment.evals, name) for name in EVALUATORS}
