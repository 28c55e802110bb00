"""Learning rates over a stage."""

import jax.numpy as jnp
import pytest

from mllmsubj.train.optimizer import descend
from mllmsubj.train.settings import ModesConfig, StageConfig


@pytest.mark.parametrize(
    ("warmup", "cooldown", "shares"),
    [
        (0, 0, (1, 1, 1, 1)),
        (2, 0, (0.5, 1, 1, 1)),
        (0, 2, (1, 1, 1, 0.5)),
        (0, 4, (1, 0.75, 0.5, 0.25)),
        (0, 300, (1, 0.75, 0.5, 0.25)),  # of a stage that is made shorter: all of it, still from the full rate
    ],
)
def test_rates_grow_and_fall(warmup, cooldown, shares):
    stage = StageConfig(4, warmup, cooldown, ((".*", 0.1),), ModesConfig(0.0, 1.0, 0.0, 0.0))
    ones = {"leaf": jnp.ones(2)}
    for done, share in enumerate(shares):
        new = descend(ones, ones, {"leaf": 0.1}, jnp.float32(done), stage)
        assert new["leaf"] == pytest.approx(1 - 0.1 * share)
