"""A checkpoint judged by a benchmark: what `mllmsubj evaluate` does between its flags and its files."""

import logging
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mllmsubj import checkpoint as checkpoints
from mllmsubj import sharding, weights
from mllmsubj.data.sources import open_source
from mllmsubj.evals import suite
from mllmsubj.evals.evaluator import Evaluator, sort
from mllmsubj.evals.held_out import SEED, held_out
from mllmsubj.evals.results import Results
from mllmsubj.evals.toyworld.benchmark import EXAMPLES, Toyworld, check_size
from mllmsubj.evals.toyworld.probe import ProbeReader
from mllmsubj.experiment import Experiment
from mllmsubj.train import run as runs

RANDOM = "Not trained yet: {}. These weights are random, and what is below says nothing about the method."

log = logging.getLogger("mllmsubj")


@dataclass(frozen=True)
class Request:
    """What to judge a checkpoint by."""

    benchmark: str
    """One of `BENCHMARKS`."""
    seed: int = 0
    """Of the noise."""
    limit: int | None = None
    """Examples, of toyworld; None: its usual number."""
    probe: Path = checkpoints.TINY
    """Folder of toyworld's probe."""


@dataclass(frozen=True)
class Plan:
    """A benchmark on one checkpoint, before its weights are read."""

    evaluators: Callable[[runs.Run], Sequence[Evaluator]]
    counted: str
    """Name of the one whose examples are the benchmark's; so `drawing`, that draws pictures."""
    drawing: str
    data: str
    steps: int
    """Of its sampler."""


def judged(checkpoint: str | Path, config: ConfigDict, request: Request) -> Results:
    """What all evaluators of the benchmark say of a checkpoint, judged with `config`.

    Raises UserError for what cannot be judged, before weights are read, and as `checkpoint.restore` does.
    """
    folder = checkpoints.folder_of(checkpoint)
    experiment = Experiment.from_config(config)
    plan = PLANS[request.benchmark](request, experiment)
    mesh = sharding.make_mesh(**asdict(experiment.mesh))
    with jax.set_mesh(mesh):
        run, params = runs.restored(experiment, folder, mesh)
        evaluators = plan.evaluators(run)
        for each in evaluators:
            log.info("%s: %d held-out examples", each.name, each.examples)
        numbers, pictures, texts = sort(chain.from_iterable(each.run(params) for each in evaluators))
    counts = {each.name: each.examples for each in evaluators}
    return Results(
        benchmark=request.benchmark,
        checkpoint=str(checkpoint),
        fingerprint=checkpoints.fingerprint(folder),
        seed=request.seed,
        examples=counts[plan.counted],
        settings={
            "data": f"{plan.data}, held-out",
            "pictures": f"{counts[plan.drawing]}, {_sampler(experiment, plan.steps)}",
            "machine": f"{jax.device_count()} × {jax.devices()[0].device_kind}, {run.model.compute.dtype}",
            "made by": f"mllmsubj {version('mllmsubj')}",
        },
        config=checkpoints.config_text(config),
        numbers=numbers,
        pictures=pictures,
        texts=texts,
        meanings=ChainMap(*(dict(each.meanings) for each in evaluators)),
        caution=RANDOM.format(", ".join(missing)) if (missing := weights.untrained(folder)) else "",
    )


def _heldout(request: Request, experiment: Experiment) -> Plan:
    data = held_out(experiment)
    open_source(data, SEED)  # what is wrong with it
    steps = experiment.evals.samples.steps or experiment.sampling.steps
    return Plan(lambda run: suite.all_evaluators(run, request.seed), "loss", "samples", data.source, steps)


def _toyworld(request: Request, experiment: Experiment) -> Plan:
    check_size(experiment)
    probe, name = ProbeReader.load(request.probe), Toyworld.name
    examples = request.limit or EXAMPLES
    return Plan(lambda run: [Toyworld(run, probe, request.seed, examples)], name, name, name, experiment.sampling.steps)


PLANS = {"heldout": _heldout, "toyworld": _toyworld}
"""By benchmark."""


def _sampler(experiment: Experiment, steps: int) -> str:
    """On one line."""
    sampling = experiment.sampling
    size, sees = f"{sampling.width} × {sampling.height}", f"{sampling.conditions} at every step"
    if sampling.conditions == "staged":
        sees = f"τ1 {sampling.tau1:g}, τ2 {sampling.tau2:g}"
    return f"{size}, {steps} steps, {sees}, {sampling.all_guidance}"
