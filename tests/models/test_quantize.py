"""8-bit quantization of frozen projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.diffusion.stages import BOTH
from mllmsubj.models.layers import unstack
from mllmsubj.models.quantize import quantize_frozen
from mllmsubj.parallel.sharding import make_mesh, parameter_shardings
from mllmsubj.tree import flatten
from tests.small import GRID, random_like, small_condition, small_model


@pytest.fixture(scope="module")
def params():
    return random_like(small_model(lora=True).abstract_params())


@pytest.fixture(scope="module")
def held(params):
    return quantize_frozen(params)


def test_quantize_frozen_scales(params, held):
    """Each output channel has a scale; the error is at most half a step."""
    wide, leaves = flatten(jax.device_get(params)), flatten(jax.device_get(held))
    scales = {path: leaf for path, leaf in leaves.items() if path.endswith("kernel_scale")}
    assert len(scales) > 40
    for path, scale in scales.items():
        kernel, eight = wide[path.removesuffix("_scale")], leaves[path.removesuffix("_scale")]
        assert eight.dtype == jnp.int8
        axis = 0 if "modulation/" in path and not path.startswith("transformer/modulation/out") else -2
        back = eight * np.expand_dims(scale, axis)
        assert np.all(np.abs(back - kernel) <= 0.5001 * np.expand_dims(scale, axis)), path


def test_quantize_frozen_excluded(params, held):
    """Trained parameters, the VAE and vectors are not quantized."""
    wide, leaves = flatten(params), flatten(held)
    for path, leaf in wide.items():
        if path.startswith(("dla/", "vae/")) or "lora_" in path or leaf.ndim < 2:
            assert leaves[path] is leaf, path


def test_quantized_velocity(params, held):
    """Quantization changes the velocity by less than 5 %, with scanned and with unrolled layers."""
    latents, t = jnp.asarray(np.random.default_rng(1).standard_normal((2, 24, 16)), jnp.float32), jnp.array([0.3, 0.8])

    def velocity(tree, scan_layers):
        model = small_model(lora=True, scan_layers=scan_layers)
        return jax.jit(model.velocity, static_argnums=(1, 5))(tree, GRID, latents, t, small_condition(), BOTH)

    want, got = velocity(params, True), velocity(held, True)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 1e-4 < error < 0.05
    np.testing.assert_allclose(velocity(unstack(held), False), got, rtol=1e-4, atol=1e-5)


def test_quantized_sharded(held):
    """Quantized parameters have shardings."""
    mesh = make_mesh(1, 2, 4)
    sharded = jax.device_put(held, parameter_shardings(held, mesh))
    assert flatten(sharded)["transformer/double_blocks/attn/to_q/kernel"].dtype == jnp.int8
