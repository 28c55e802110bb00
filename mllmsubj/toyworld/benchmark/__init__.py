"""Toyworld as a benchmark: generated images of held-out subjects and prompts, evaluated by the probe."""

from typing import TYPE_CHECKING

from mllmsubj.evals.benchmarks import Benchmark, EvaluationPlan, EvaluationRequest

if TYPE_CHECKING:
    from mllmsubj.config.schema import Experiment


def _plan(request: EvaluationRequest, experiment: "Experiment") -> EvaluationPlan:
    from mllmsubj.checkpoints.format import TINY
    from mllmsubj.toyworld.benchmark.benchmark import EXAMPLES, Toyworld, check_size
    from mllmsubj.toyworld.probe.reader import ProbeReader

    check_size(experiment)
    probe, name = ProbeReader.load(request.probe or TINY), Toyworld.name
    examples = request.limit or EXAMPLES
    return EvaluationPlan(
        lambda run: [Toyworld(run, probe, request.seed, examples)], name, name, name, experiment.sampling.steps
    )


TOYWORLD = Benchmark(_plan)
"""Entry point for `mllmsubj.evals.benchmarks`: identity, prompt following and pose copying."""
