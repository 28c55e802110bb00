"""Evaluation of a checkpoint with a benchmark, as `mllmsubj evaluate` runs it."""

import logging
from collections import ChainMap
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mllmsubj.checkpoints import format as checkpoints
from mllmsubj.checkpoints import initial
from mllmsubj.config.schema import Experiment
from mllmsubj.evals.benchmarks import EvaluationRequest, benchmark
from mllmsubj.evals.results import Results
from mllmsubj.parallel import sharding
from mllmsubj.train import setup as setups
from mllmsubj.train.evaluator import split_values

RANDOM = "Not trained yet: {}. These weights are random, and what is below says nothing about the method."

log = logging.getLogger("mllmsubj")


def evaluate_checkpoint(checkpoint: str | Path, config: ConfigDict, request: EvaluationRequest) -> Results:
    """Returns the results of all evaluators of the benchmark on a checkpoint, evaluated with `config`.

    Raises UserError, before weights are read, if the checkpoint cannot be evaluated, and as `setup.restored` does.
    """
    folder = checkpoints.folder_of(checkpoint)
    experiment = Experiment.from_config(config)
    plan = benchmark(request.benchmark).plan(request, experiment)
    mesh = sharding.make_mesh(**asdict(experiment.mesh))
    with jax.set_mesh(mesh):
        setup, params = setups.restored(experiment, folder, mesh)
        evaluators = plan.make_evaluators(setup)
        for each in evaluators:
            log.info("%s: %d held-out examples", each.name, each.examples)
        numbers, images, texts = split_values(chain.from_iterable(each.run(params) for each in evaluators))
    counts = {each.name: each.examples for each in evaluators}
    return Results(
        benchmark=request.benchmark,
        checkpoint=str(checkpoint),
        fingerprint=checkpoints.fingerprint(folder),
        seed=request.seed,
        examples=counts[plan.count_evaluator],
        settings={
            "data": f"{plan.data}, held-out",
            "pictures": f"{counts[plan.image_evaluator]}, {_sampler(experiment, plan.steps)}",
            "machine": f"{jax.device_count()} × {jax.devices()[0].device_kind}, {setup.model.compute.dtype}",
            "made by": f"mllmsubj {version('mllmsubj')}",
        },
        config=checkpoints.config_text(config),
        numbers=numbers,
        images=images,
        texts=texts,
        meanings=ChainMap(*(dict(each.meanings) for each in evaluators)),
        warning=RANDOM.format(", ".join(missing)) if (missing := initial.untrained_components(folder)) else "",
    )


def _sampler(experiment: Experiment, steps: int) -> str:
    """Returns a one-line description of the sampler."""
    sampling = experiment.sampling
    size, sees = f"{sampling.width} × {sampling.height}", f"{sampling.conditions} at every step"
    if sampling.conditions == "staged":
        sees = f"τ1 {sampling.tau1:g}, τ2 {sampling.tau2:g}"
    return f"{size}, {steps} steps ({sampling.stepper}), {sees}, {sampling.all_guidance}"
