"""The sampling loop: a scan per stage, each over a sequence that holds only what its stage attends to."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mllmsubj.diffusion.stages import Stage
from mllmsubj.typing import Array, Attends, Float, PyTree, Velocity


def sample(
    velocity: Velocity,
    condition: PyTree,
    noise: Float[Array, "b n d"],
    times: Float[Array, " steps1"],
    stages: Sequence[Stage],
) -> Float[Array, "b n d"]:
    """Latents at t = 0 from noise at t = 1; trace it once under jit, with `stages` static.

    Leaving tokens out is exact: it equals masking them as keys, since nobody else reads what they compute.
    """
    latents = noise
    for stage in stages:
        latents = euler(velocity, condition, latents, times[stage.start : stage.stop + 1], stage.attends)
    return latents


def euler(
    velocity: Velocity,
    condition: PyTree,
    latents: Float[Array, "b n d"],
    times: Float[Array, " steps1"],
    attends: Attends,
) -> Float[Array, "b n d"]:
    """Euler steps x ← x + (t' − t) · v(x, t) along `times`, latents in float32.

    Source: diffusers `FlowMatchEulerDiscreteScheduler.step`.
    """

    def step(x: Array, interval: tuple[Array, Array]) -> tuple[Array, None]:
        now, then = interval
        v = velocity(x, jnp.full(x.shape[:1], now), condition, attends)
        return x + (then - now) * v.astype(x.dtype), None

    return jax.lax.scan(step, latents.astype(jnp.float32), (times[:-1], times[1:]))[0]
