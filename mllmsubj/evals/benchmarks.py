"""Benchmarks with which `mllmsubj evaluate` evaluates a checkpoint.

Other packages, toyworld among them, add benchmarks as entry points of the group `mllmsubj.benchmarks`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from mllmsubj.errors import UserError, nearest

if TYPE_CHECKING:
    from mllmsubj.config.schema import Experiment
    from mllmsubj.train.evaluator import Evaluator
    from mllmsubj.train.setup import Setup

GROUP = "mllmsubj.benchmarks"


@dataclass(frozen=True)
class EvaluationRequest:
    """Settings of one evaluation of a checkpoint."""

    benchmark: str
    """Name of the benchmark, one of `names()`."""
    seed: int = 0
    """Seed of the noise."""
    limit: int | None = None
    """Number of examples, if the benchmark supports the choice; None: its default."""
    probe: Path | None = None
    """Folder of the probe network, if the benchmark uses one; None: the shipped one."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Benchmark of one checkpoint, prepared before its weights are read."""

    make_evaluators: "Callable[[Setup], Sequence[Evaluator]]"
    count_evaluator: str
    """Name of the evaluator whose number of examples is reported as the benchmark's."""
    image_evaluator: str
    """Name of the evaluator that generates images."""
    data: str
    """Name of the data source."""
    steps: int
    """Number of sampling steps."""


@dataclass(frozen=True)
class Benchmark:
    """Way to evaluate a checkpoint. Its module imports JAX only when `plan` is called."""

    plan: "Callable[[EvaluationRequest, Experiment], EvaluationPlan]"
    """Plans an evaluation; raises UserError if the checkpoint cannot be evaluated."""


def _plan_heldout(request: EvaluationRequest, experiment: "Experiment") -> EvaluationPlan:
    from mllmsubj.data.sources import open_source
    from mllmsubj.evals import suite
    from mllmsubj.evals.held_out import SEED, held_out

    data = held_out(experiment)
    open_source(data, SEED)  # raises UserError before any weights are read
    steps = experiment.evals.samples.steps or experiment.sampling.steps
    return EvaluationPlan(
        lambda setup: suite.all_evaluators(setup, request.seed), "loss", "samples", data.source, steps
    )


HELDOUT = Benchmark(_plan_heldout)
"""Evaluation on the config's held-out data: training loss by condition mode, and sample images."""


@cache
def registered() -> dict[str, EntryPoint]:
    """Returns the registered benchmarks by name, without importing them."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """Returns the names of all benchmarks."""
    return ("heldout", *sorted(registered()))


def benchmark(name: str) -> Benchmark:
    """Returns the benchmark called `name`, one of `names()`."""
    return HELDOUT if name == "heldout" else registered()[name].load()


def check_benchmark(name: str | None) -> None:
    """Raises UserError if `name` is None or not the name of a benchmark."""
    known = names()
    if name not in known:
        wrong = f"unknown benchmark {name!r}{nearest(name, known)}" if name else "no benchmark"
        raise UserError(f"{wrong}; there are {', '.join(known)}: --benchmark=heldout")
