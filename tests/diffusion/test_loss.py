"""Flow matching's pieces against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.diffusion.loss import interpolate, logit_normal, shifted_uniform, squared_error


def test_the_path_and_its_velocity():
    picture, noise = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    t = jnp.array([0.0, 0.25, 1.0])
    x, velocity = interpolate(picture, noise, t)
    np.testing.assert_allclose(x[0], picture[0])
    np.testing.assert_allclose(x[2], noise[2])
    # An Euler step of the sampler from x_t to t = 0 along that velocity ends at the picture.
    np.testing.assert_allclose(x - t[:, None, None] * velocity, picture, atol=1e-6)


def test_the_loss_is_a_mean_per_row_in_float32():
    target = np.zeros((2, 3, 4), np.float32)
    velocity = np.stack([np.ones((3, 4)), np.full((3, 4), 2.0)])
    np.testing.assert_allclose(squared_error(jnp.asarray(velocity, jnp.bfloat16), target), [1.0, 4.0])


def test_densities():
    keys = jax.random.split(jax.random.key(1), 20_000)
    t = np.asarray(jax.vmap(lambda key: logit_normal(key, 0.5, 2.0))(keys))
    logits = np.log(t) - np.log1p(-t)
    np.testing.assert_allclose((logits.mean(), logits.std()), (0.5, 2.0), atol=0.05)
    exponent = 1.15
    t = np.asarray(jax.vmap(lambda key: shifted_uniform(key, exponent))(keys), np.float64)
    even = 1 / (1 + (1 / t - 1) * math.exp(exponent))
    np.testing.assert_allclose(np.quantile(even, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)
