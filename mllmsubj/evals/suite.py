"""The evaluators that a config asks for."""

import logging
from collections.abc import Callable
from typing import Any

from mllmsubj.errors import UserError
from mllmsubj.evals.held_out import held_out
from mllmsubj.evals.loss import HeldOutLoss
from mllmsubj.evals.samples import Samples
from mllmsubj.train.evaluator import Evaluator
from mllmsubj.train.run import Run

log = logging.getLogger("mllmsubj")

EVALUATORS: dict[str, Callable[..., Evaluator]] = {"loss": HeldOutLoss, "samples": Samples}
"""Section of the config's `evals` -> evaluator, in the order in which they run."""


def evaluators(run: Run) -> list[Evaluator]:
    """Those that have a cadence in training; none, and a line, where nobody said what to judge on."""
    sections = _sections(run)
    due = [name for name in EVALUATORS if sections[name].every_steps]
    if not due:
        return []
    try:
        data = held_out(run.experiment)
    except UserError as error:
        log.warning("no evaluation: %s", error)
        return []
    return [EVALUATORS[name](run, data, sections[name]) for name in due]


def all_evaluators(run: Run, seed: int) -> list[Evaluator]:
    """All, whatever their cadence; `seed`: of their noise. Raises UserError where nobody said what to judge on."""
    data, sections = held_out(run.experiment), _sections(run)
    return [make(run, data, sections[name], seed) for name, make in EVALUATORS.items()]


def _sections(run: Run) -> dict[str, Any]:
    return {name: getattr(run.experiment.evals, name) for name in EVALUATORS}
