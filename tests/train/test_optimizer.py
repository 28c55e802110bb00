"""Learning rates over a stage, and updates by Muon."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from configs import tiny
from mllmsubj.config.schema import Experiment
from mllmsubj.config.train import ModesConfig, StageConfig
from mllmsubj.train.optimizer import current_learning_rates, make_optimizer
from mllmsubj.tree import flatten, unflatten


@pytest.mark.parametrize(
    ("warmup", "cooldown", "shares"),
    [
        (0, 0, (1, 1, 1, 1)),
        (2, 0, (0.5, 1, 1, 1)),
        (0, 2, (1, 1, 1, 0.5)),
        (0, 4, (1, 0.75, 0.5, 0.25)),
        (0, 300, (1, 0.75, 0.5, 0.25)),  # a stage shorter than its decay: all of it, from the full rate
    ],
)
def test_make_optimizer_schedule(warmup, cooldown, shares):
    stage = StageConfig(4, warmup, cooldown, ((".*", 0.1),), ModesConfig(0.0, 1.0, 0.0, 0.0))
    train = replace(Experiment.from_config(tiny.get_config()).train, weight_decay=0.0, clip_norm=1e9)
    rates = FrozenDict({"dla/a": 0.1, "dla/b": 0.2, "transformer/c": 0.4})
    params = unflatten(dict.fromkeys(rates, jnp.ones(2)))
    optimizer = make_optimizer(train, stage, rates)
    state = optimizer.init(params)
    for share in shares:
        logged = current_learning_rates(state, stage, rates)
        assert logged == pytest.approx({"learning_rate/dla": 0.2 * share, "learning_rate/transformer": 0.4 * share})
        updates, state = optimizer.update(params, state, params)
        for path, update in flatten(updates).items():  # Adam's own update of a constant gradient is 1
            assert update == pytest.approx(-rates[path] * share, rel=1e-4)


def first_step(optimizer: str, gradients: dict) -> dict:
    """Returns path -> the first update, without weight decay and clipping."""
    train = Experiment.from_config(tiny.get_config()).train
    rates, stage = FrozenDict(dict.fromkeys(flatten(gradients), 1.0)), replace(train.stage1, warmup_steps=0)
    made = make_optimizer(replace(train, optimizer=optimizer, weight_decay=0.0, clip_norm=1e9), stage, rates)
    updates, _ = jax.jit(made.update)(gradients, made.init(gradients), gradients)
    return {path: -update for path, update in flatten(updates).items()}


def test_make_optimizer_muon():
    """Muon's updates of matrices are orthogonal and as large as Adam's; other parameters have Adam's updates."""
    shapes = {
        "transformer/context_embedder/kernel": (24, 48),
        "transformer/single_blocks/proj_mlp/kernel": (3, 32, 64),
        "transformer/single_blocks/proj_mlp/bias": (3, 64),
        "transformer/modulation/single/kernel": (16, 3, 64),
        "transformer/x_embedder/kernel": (8, 32),
        "captions/token_embedding/embedding": (10, 32),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    gradients = {path: jax.random.normal(key, shape) for key, (path, shape) in zip(keys, shapes.items(), strict=True)}
    # The gradient of one layer is far larger than the others; each layer is orthogonalized on its own.
    pull = jnp.array([1.0, 30.0, 0.1])
    gradients["transformer/single_blocks/proj_mlp/kernel"] *= pull[:, None, None]
    gradients["transformer/modulation/single/kernel"] *= pull[:, None]
    muon, adam = (first_step(name, unflatten(gradients)) for name in ("muon", "adamw"))

    matrices = [muon["transformer/context_embedder/kernel"], *muon["transformer/single_blocks/proj_mlp/kernel"]]
    matrices += list(jnp.moveaxis(muon["transformer/modulation/single/kernel"], 1, 0))
    for matrix in matrices:
        values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * max(matrix.shape) ** 0.5)
        assert all((values > 0.5) & (values < 1.3))  # the accuracy of five Newton-Schulz steps
    rest = ("transformer/single_blocks/proj_mlp/bias", "transformer/x_embedder/kernel")
    for path in (*rest, "captions/token_embedding/embedding"):
        np.testing.assert_allclose(muon[path], adam[path])
