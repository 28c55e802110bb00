"""Flow-matching training: distributions of the time t, interpolation with noise, target velocity and error."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from mllmsubj.typing import Array, Float

Density = Literal["logit_normal", "shifted_uniform"]


def logit_normal(key: Array, mean: float, std: float) -> Float[Array, ""]:
    """Samples a t whose logit is normal. Source: Stable Diffusion 3 (arXiv 2403.03206), Eq. 19."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key))


def shifted_uniform(key: Array, exponent: float) -> Float[Array, ""]:
    """Samples a uniform t and shifts it as the sampler does, t ← 1 / (1 + (1/t − 1) / e^mu), mu being `exponent`."""
    t = jax.random.uniform(key, minval=1e-6)
    return 1.0 / (1.0 + (1.0 / t - 1.0) / math.exp(exponent))


def interpolate(
    image: Float[Array, "b n c"], noise: Float[Array, "b n c"], t: Float[Array, " b"]
) -> tuple[Float[Array, "b n c"], Float[Array, "b n c"]]:
    """Returns x_t = (1 − t)·x_0 + t·ε and its velocity ε − x_0; t = 1 is noise. Source: UNO's training, as FLUX."""
    t = t[:, None, None]
    return (1.0 - t) * image + t * noise, noise - image


def squared_error(
    velocity: Float[Array, "b n c"], target: Float[Array, "b n c"], weights: Float[Array, "b n"] | None = None
) -> Float[Array, " b"]:
    """Returns the mean squared error of each row in float32; token `weights` are normalized to sum to 1."""
    errors = jnp.mean(jnp.square(velocity.astype(jnp.float32) - target.astype(jnp.float32)), axis=2)
    return jnp.mean(errors, axis=1) if weights is None else jnp.sum(errors * weights, axis=1) / jnp.sum(weights, axis=1)
