"""The evaluators that a config asks for."""

from dataclasses import replace

from mllmsubj.evals.evaluator import Evaluator
from mllmsubj.evals.held_out import held_out
from mllmsubj.evals.loss import HeldOutLoss
from mllmsubj.evals.samples import Samples
from mllmsubj.train.run import Run


def evaluators(run: Run) -> list[Evaluator]:
    """In the order in which they run."""
    config, sampling = run.experiment.evals, run.experiment.sampling
    if not (config.loss.every_steps or config.samples.every_steps):
        return []
    data = held_out(run.experiment, max(config.loss.examples, config.samples.count))
    if data is None:
        return []
    found: list[Evaluator] = []
    if config.loss.every_steps:
        found.append(HeldOutLoss(run, data, config.loss.examples, config.loss.every_steps))
    if config.samples.every_steps:
        settings = replace(sampling, steps=config.samples.steps or sampling.steps)
        found.append(Samples(run, data, config.samples.count, settings, config.samples.every_steps))
    return found
