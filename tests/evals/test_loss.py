from contextlib import closing
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.config.train import LossEvalConfig, ModesConfig
from mllmsubj.data.sources import open_source
from mllmsubj.errors import UserError
from mllmsubj.evals.held_out import SEED, held_out
from mllmsubj.evals.loss import HeldOutLoss
from mllmsubj.train import modes
from mllmsubj.train.features import FROZEN_ENCODERS
from tests.evals.small_run import mesh_of, run_on

SIX = LossEvalConfig(every_steps=2, examples=6)
"""In batches of four, half of the second batch is counted."""


@pytest.fixture(scope="module")
def evaluator(restored):
    return HeldOutLoss(restored[0], held_out(restored[0].experiment), SIX, seed=3)


@pytest.fixture(scope="module")
def numbers(evaluator, restored):
    with jax.set_mesh(mesh_of(1)):
        return dict(evaluator.run(restored[1]))


def test_held_out_loss_metrics(evaluator, numbers):
    """Every metric has an explanation."""
    assert list(numbers) == list(evaluator.meanings) == ["loss/all", *(f"loss/{name}" for name in modes.NAMES)]
    assert evaluator.examples == 6
    assert np.isfinite(list(numbers.values())).all()
    assert len(set(numbers.values())) == 5


def test_held_out_loss_modes(restored, evaluator, numbers):
    """A mode's loss is the training loss with the tokens of the other modes dropped."""
    run, params = restored
    last = replace(run.stages[1].step, train=replace(run.experiment.train, grad_accum_steps=1), seed=3)
    encoders, data = {name: params[name] for name in FROZEN_ENCODERS}, held_out(run.experiment)
    with jax.set_mesh(mesh_of(1)):
        with closing(run.loader(data, 4, open_source(data, SEED), SEED)) as loader:
            parts = [jax.tree.map(lambda x: x[0], evaluator._encode(encoders, next(loader))) for _ in range(2)]
        parts[1] = replace(parts[1], row=parts[1].row + 4)
        for i, name in enumerate(modes.NAMES):
            alone = ModesConfig(*(float(i == j) for j in range(4)))
            step = replace(last, stage=replace(last.stage, modes=alone), active_tokens=modes.active_tokens_of(alone))
            losses = jax.jit(step.losses)
            found = [losses(params, part, step.draw(part, jnp.asarray(0))) for part in parts]
            np.testing.assert_allclose(numbers[f"loss/{name}"], np.mean(np.concatenate(found)[:6]), rtol=2e-5)


def test_held_out_loss_all(numbers):
    """The mode losses are averaged with the last stage's shares."""
    shares = dict(both=0.6, mllm=0.15, vae=0.15, none=0.1)
    want = sum(share * numbers[f"loss/{name}"] for name, share in shares.items())
    assert numbers["loss/all"] == pytest.approx(want, rel=1e-6)


def test_held_out_loss_deterministic(evaluator, restored, numbers):
    with jax.set_mesh(mesh_of(1)):
        assert dict(evaluator.run(restored[1])) == numbers


def test_held_out_loss_sharded(folder, numbers):
    """Losses depend neither on the number of devices, here more than examples, nor on the seed of training."""
    with jax.set_mesh(mesh_of(8)):
        run, params = run_on(folder, 8)
        run = replace(run, experiment=replace(run.experiment, seed=7))
        make_global_batch = dict(HeldOutLoss(run, held_out(run.experiment), SIX, seed=3).run(params))
    assert make_global_batch == pytest.approx(numbers, rel=1e-5)


def test_held_out_loss_no_examples(restored):
    run = restored[0]
    with pytest.raises(UserError, match=r"evals\.loss\.examples is 0; it must be at least 1"):
        HeldOutLoss(run, held_out(run.experiment), LossEvalConfig(1, 0))
