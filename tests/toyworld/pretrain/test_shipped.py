"""The parts that are shipped do what their files say they did when they were made."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mllmsubj.checkpoints import components
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.evals.benchmarks import Request
from mllmsubj.evals.judge import judged
from mllmsubj.models.layers import unstack
from mllmsubj.models.subject import SubjectModel
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.toyworld.pretrain.parts import make_part
from mllmsubj.train.setup import prepare
from mllmsubj.tree import flatten, unflatten
from tests.environment import ROOT

JUDGED = 32
"""Held-out pictures; the files' numbers are of more."""
NUMBERS = {
    "vae": ("vae/psnr", 0.7),
    "probe": ("probe/mean", 0.02),
    "mllm": ("mllm/mean", 0.05),
    "dit": ("dit/accuracy", 0.04),
}
"""Part -> what it is judged by, and how far so few pictures may be off."""
CONFIG = load_config(str(ROOT / "configs" / "tiny.py"))


@pytest.mark.parametrize(
    "name", ["vae", "probe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mllm", "dit"))]
)
def test_a_shipped_part_is_as_good_as_it_says(name):
    part = make_part(name, Experiment.from_config(CONFIG), checkpoint.TINY)
    part, (number, off) = replace(part, config=replace(part.config, judged=JUDGED)), NUMBERS[name]
    params = unflatten(components.read(checkpoint.TINY, (name,)))
    found = dict(
        part.judge(params if name == "probe" or part.model.compute.scan_layers else unstack(params), part.frozen())
    )
    assert found[number] == pytest.approx(components.provenance(checkpoint.TINY, name)["metrics"][number], abs=off)


def test_shipped_parts_fit_the_model():
    """Path by path, layers stacked, whatever the machine that made them computes with."""
    experiment = Experiment.from_config(CONFIG)
    model = SubjectModel(experiment.model, experiment.compute.resolve()).stacked
    expected, found = flatten(model.abstract_params()), components.read(checkpoint.TINY)
    parts = {path.partition("/")[0] for path in found} & {path.partition("/")[0] for path in expected}
    assert parts
    for part in parts:
        shapes = {
            path: leaf.shape for path, leaf in expected.items() if path.startswith(f"{part}/") and "lora" not in path
        }
        assert {path: leaf.shape for path, leaf in found.items() if path.startswith(f"{part}/")} == shapes


@pytest.mark.parametrize("warm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_training_begins_with_the_dla_that_is_shipped_or_a_random_one(warm, tmp_path):
    config = load_config(str(ROOT / "configs" / "tiny.py"))
    config.train.warm_start = warm
    mesh = make_mesh(devices=jax.devices()[:1])
    trained = flatten(prepare(config, Experiment.from_config(config), tmp_path, mesh)[1])
    found = components.read(checkpoint.TINY, ("dla",))
    kernels = [path for path in found if path.endswith("/kernel")]
    assert kernels
    assert all(np.array_equal(trained[path], found[path]) == warm for path in kernels)


def test_all_that_is_shipped_is_small():
    assert sum(checkpoint.sizes(checkpoint.TINY).values()) < 24 * 2**20


@pytest.mark.slow
def test_the_shipped_model_draws_as_well_as_it_did():
    """The method's guard: the same pictures as when the subject was shipped, judged by the same probe."""
    recorded = components.provenance(checkpoint.TINY, components.SUBJECT)["guarded"]
    found = judged("tiny", checkpoint.read_config(checkpoint.TINY), Request("toyworld", limit=recorded["examples"]))
    for name in ("identity_accuracy", "prompt_accuracy"):
        assert found.numbers[name] > recorded[name] - 0.05
