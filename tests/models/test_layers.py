"""Projections to and from heads, and stacks of layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.models.layers import Compute, Dense, stack
from mllmsubj.models.lora import LoRAConfig
from mllmsubj.models.quantize import quantize_frozen
from mllmsubj.parallel.target import compiling_for, platform
from tests.small import random_like

LORA = LoRAConfig(rank=4, alpha=4.0, targets=("to_q", "proj_out"))
X = jax.random.normal(jax.random.key(0), (2, 5, 24))
HIDDEN = jax.random.normal(jax.random.key(1), (2, 5, 8))
HEADS = X.reshape(2, 5, 4, 6)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("eight_bits", [False, True])
@pytest.mark.parametrize(
    ("name", "fields", "plain", "headed", "shape"),
    [
        ("to_q", {"head_dim": 6}, (X,), (X,), HEADS.shape),
        ("proj_out", {"reads_heads": True}, (X, HIDDEN), (HEADS, HIDDEN), X.shape),
    ],
)
def test_dense_heads(platform, eight_bits, name, fields, plain, headed, shape):
    """Projections to and from heads have the parameters and the values of the projection of all channels."""
    modules = Dense(24, lora=LORA, name=name), Dense(24, lora=LORA, name=name, **fields)
    with compiling_for(platform):
        shapes, others = (
            jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
            for module, args in zip(modules, (plain, headed), strict=True)
        )
        assert shapes == others
        params = random_like(shapes)
        if eight_bits:
            params = quantize_frozen({"transformer": {"module": params}})["transformer"]["module"]
            assert params["kernel"].dtype == jnp.int8
        expected = modules[0].apply({"params": params}, *plain)
        found = modules[1].apply({"params": params}, *headed)
    assert found.shape == shape
    np.testing.assert_allclose(found.reshape(X.shape), expected, rtol=1e-5, atol=1e-5)


def test_stack_unrolled_traces():
    """Unrolled layers are traced once for each platform."""
    traced = []

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            traced.append(platform())
            return Dense(24)(x), None

    layers = stack(Block, 3, Compute(scan_layers=False))()
    params = random_like(jax.eval_shape(layers.init, jax.random.key(0), X))
    traced.clear()
    for kind in ("cpu", "tpu", "cpu"):
        with compiling_for(kind):
            found, _ = jax.jit(lambda params: layers.apply(params, X))(params)
    assert traced == ["cpu", "tpu"]
    expected = X
    for layer in params["params"].values():
        expected = Dense(24).apply({"params": layer["Dense_0"]}, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_dense_mismatched_shape():
    with pytest.raises(ValueError, match=r"parameter kernel is \(24, 23\); its module takes \(24, 24\)"):
        Dense(24).apply({"params": {"kernel": jnp.zeros((24, 23)), "bias": jnp.zeros(24)}}, X)


def test_dense_initializer_not_traced():
    """Initializers are not called where parameters are given."""
    dense = Dense(24, kernel_init=lambda *_: pytest.fail("the initializer was called"), use_bias=False)
    assert dense.apply({"params": {"kernel": jnp.zeros((24, 24))}}, X).shape == X.shape
