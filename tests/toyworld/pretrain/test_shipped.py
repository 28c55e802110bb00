"""Shipped components reach the metrics that were recorded when they were trained."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mllmsubj.checkpoints import components
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.evals.benchmarks import EvaluationRequest
from mllmsubj.evals.evaluation import evaluate_checkpoint
from mllmsubj.models.layers import unstack
from mllmsubj.models.subject import SubjectModel
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.toyworld.pretrain.registry import make_component
from mllmsubj.train.setup import prepare
from mllmsubj.tree import flatten, unflatten
from tests.environment import ROOT

NUM_EVAL_IMAGES = 32
"""Number of held-out images; metrics in the files are over more."""
NUMBERS = {
    "vae": ("vae/psnr", 0.7),
    "probe": ("probe/mean", 0.02),
    "mllm": ("mllm/mean", 0.05),
    "dit": ("dit/accuracy", 0.04),
}
"""Component -> its metric, and the tolerance for so few images."""
CONFIG = load_config(str(ROOT / "configs" / "tiny.py"))


@pytest.mark.parametrize(
    "name", ["vae", "probe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mllm", "dit"))]
)
def test_shipped_component_metrics(name):
    """A shipped component reaches the metric in its provenance."""
    component = make_component(name, Experiment.from_config(CONFIG), checkpoint.TINY)
    component, (number, off) = (
        replace(component, config=replace(component.config, num_eval_examples=NUM_EVAL_IMAGES)),
        NUMBERS[name],
    )
    params = unflatten(components.read(checkpoint.TINY, (name,)))
    found = dict(
        component.evaluate(
            params if name == "probe" or component.model.compute.scan_layers else unstack(params), component.frozen()
        )
    )
    assert found[number] == pytest.approx(components.provenance(checkpoint.TINY, name)["metrics"][number], abs=off)


def test_shipped_component_shapes():
    """Shipped components have the paths and shapes of the model with stacked layers."""
    experiment = Experiment.from_config(CONFIG)
    model = SubjectModel(experiment.model, experiment.compute.resolve()).stacked
    expected, found = flatten(model.abstract_params()), components.read(checkpoint.TINY)
    parts = {path.partition("/")[0] for path in found} & {path.partition("/")[0] for path in expected}
    assert parts
    for component in parts:
        shapes = {
            path: leaf.shape
            for path, leaf in expected.items()
            if path.startswith(f"{component}/") and "lora" not in path
        }
        assert {path: leaf.shape for path, leaf in found.items() if path.startswith(f"{component}/")} == shapes


@pytest.mark.parametrize("warm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_prepare_warm_start(warm, tmp_path):
    """Training starts from the shipped DLA if `warm_start` is set, else from a random one."""
    config = load_config(str(ROOT / "configs" / "tiny.py"))
    config.train.warm_start = warm
    mesh = make_mesh(devices=jax.devices()[:1])
    trained = flatten(prepare(config, Experiment.from_config(config), tmp_path, mesh)[1])
    found = components.read(checkpoint.TINY, ("dla",))
    kernels = [path for path in found if path.endswith("/kernel")]
    assert kernels
    assert all(np.array_equal(trained[path], found[path]) == warm for path in kernels)


def test_shipped_size():
    """All shipped components together are smaller than 24 MiB."""
    assert sum(checkpoint.sizes(checkpoint.TINY).values()) < 24 * 2**20


@pytest.mark.slow
def test_shipped_model_accuracy():
    """Accuracies on the recorded examples are at most 0.05 below those at release."""
    recorded = components.provenance(checkpoint.TINY, components.SUBJECT)["guarded"]
    found = evaluate_checkpoint(
        "tiny", checkpoint.read_config(checkpoint.TINY), EvaluationRequest("toyworld", limit=recorded["examples"])
    )
    for name in ("identity_accuracy", "prompt_accuracy"):
        assert found.numbers[name] > recorded[name] - 0.05
