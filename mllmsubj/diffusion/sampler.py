"""The sampling loop: a scan per stage, each over a sequence that holds only what its stage attends to."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mllmsubj.diffusion.stages import Stage
from mllmsubj.typing import Array, Attends, Float, PyTree, Velocity

Prepare = Callable[[Array, PyTree], PyTree]


def sample(
    velocity: Velocity,
    condition: PyTree,
    noise: Float[Array, "b n d"],
    times: Float[Array, " steps1"],
    stages: Sequence[Stage],
    prepare: Prepare | None = None,
) -> Float[Array, "b n d"]:
    """Latents at t = 0 from noise at t = 1; trace it once under jit, with `stages` static.

    Leaving tokens out is exact: it equals masking them as keys, since nobody else reads what they compute.
    `prepare(times [steps, b], condition)` makes of all times at once what `velocity` then gets in place of t, a step's
    slice a step; without it `velocity` gets t [b].
    """
    starts = jnp.broadcast_to(times[:-1, None], (len(times) - 1, noise.shape[0]))
    moments = starts if prepare is None else prepare(starts, condition)
    latents = noise.astype(jnp.float32)
    for stage in stages:
        steps = slice(stage.start, stage.stop)
        inputs = jax.tree.map(lambda x, steps=steps: x[steps], (moments, jnp.diff(times)))
        latents = euler(velocity, condition, latents, inputs, stage.attends)
    return latents


def euler(
    velocity: Velocity,
    condition: PyTree,
    latents: Float[Array, "b n d"],
    steps: tuple[PyTree, Float[Array, " steps"]],
    attends: Attends,
) -> Float[Array, "b n d"]:
    """Euler steps x ← x + Δt · v(x, t), latents in float32; `steps` holds each step's t (or moment) and Δt < 0.

    Source: diffusers `FlowMatchEulerDiscreteScheduler.step`.
    """

    def step(x: Array, moment_and_length: tuple[PyTree, Array]) -> tuple[Array, None]:
        moment, length = moment_and_length
        return x + length * velocity(x, moment, condition, attends).astype(x.dtype), None

    return jax.lax.scan(step, latents, steps)[0]
