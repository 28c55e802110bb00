"""The terms of flow matching, compared with their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.diffusion.loss import interpolate, logit_normal, shifted_uniform, squared_error


def test_interpolate():
    """The path leads from the image at t = 0 to noise at t = 1, along the velocity."""
    picture, noise = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    t = jnp.array([0.0, 0.25, 1.0])
    x, velocity = interpolate(picture, noise, t)
    np.testing.assert_allclose(x[0], picture[0])
    np.testing.assert_allclose(x[2], noise[2])
    # The sampler's Euler step from x_t to t = 0 along that velocity ends at the image.
    np.testing.assert_allclose(x - t[:, None, None] * velocity, picture, atol=1e-6)


def test_squared_error():
    """The error is a mean per row in float32."""
    target = np.zeros((2, 3, 4), np.float32)
    velocity = np.stack([np.ones((3, 4)), np.full((3, 4), 2.0)])
    np.testing.assert_allclose(squared_error(jnp.asarray(velocity, jnp.bfloat16), target), [1.0, 4.0])


def test_time_distributions():
    """Samples of t have the distribution of their names."""
    keys = jax.random.split(jax.random.key(1), 20_000)
    t = np.asarray(jax.vmap(lambda key: logit_normal(key, 0.5, 2.0))(keys))
    logits = np.log(t) - np.log1p(-t)
    np.testing.assert_allclose((logits.mean(), logits.std()), (0.5, 2.0), atol=0.05)
    exponent = 1.15
    t = np.asarray(jax.vmap(lambda key: shifted_uniform(key, exponent))(keys), np.float64)
    even = 1 / (1 + (1 / t - 1) * math.exp(exponent))
    np.testing.assert_allclose(np.quantile(even, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)
