"""What `mllmsubj evaluate` can judge a checkpoint by.

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
class Request:
    """What to judge a checkpoint by."""

    benchmark: str
    """One of `names()`."""
    seed: int = 0
    """Of the noise."""
    limit: int | None = None
    """Number of examples, where the benchmark lets it be chosen; None: its usual number."""
    probe: Path | None = None
    """Folder of the network that judges, where the benchmark has one; None: the shipped one."""


@dataclass(frozen=True)
class Plan:
    """A benchmark on one checkpoint, before its weights are read."""

    evaluators: "Callable[[Setup], Sequence[Evaluator]]"
    counted: str
    """Name of the evaluator whose examples are the benchmark's."""
    drawing: str
    """Name of the evaluator that generates images."""
    data: str
    steps: int
    """Of its sampler."""


@dataclass(frozen=True)
class Benchmark:
    """A way to judge a checkpoint. Its module imports JAX only when `plan` is called."""

    plan: "Callable[[Request, Experiment], Plan]"
    """Raises UserError for what cannot be judged."""


def _plan_heldout(request: Request, experiment: "Experiment") -> Plan:
    from mllmsubj.data.sources import open_source
    from mllmsubj.evals import suite
    from mllmsubj.evals.held_out import SEED, held_out

    data = held_out(experiment)
    open_source(data, SEED)  # raises what is wrong with it
    steps = experiment.evals.samples.steps or experiment.sampling.steps
    return Plan(lambda setup: suite.all_evaluators(setup, request.seed), "loss", "samples", data.source, steps)


HELDOUT = Benchmark(_plan_heldout)
"""The config's held-out data: training loss by condition mode, and sample images."""


@cache
def registered() -> dict[str, EntryPoint]:
    """Benchmarks that are registered, by name; nothing is imported."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """Names of all benchmarks."""
    return ("heldout", *sorted(registered()))


def benchmark(name: str) -> Benchmark:
    """The benchmark of one of `names()`."""
    return HELDOUT if name == "heldout" else registered()[name].load()


def check_benchmark(name: str | None) -> None:
    """Raises UserError for a benchmark that does not exist, or None."""
    known = names()
    if name not in known:
        wrong = f"unknown benchmark {name!r}{nearest(name, known)}" if name else "no benchmark"
        raise UserError(f"{wrong}; there are {', '.join(known)}: --benchmark=heldout")
