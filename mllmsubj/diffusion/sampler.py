"""The sampling loop, with one scan per stage over a sequence of only the tokens that are active in it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mllmsubj.diffusion.stages import Stage
from mllmsubj.diffusion.steppers import STEPPERS, Stepper
from mllmsubj.typing import Array, Float, PyTree, Velocity

Prepare = Callable[[Array, PyTree], PyTree]


def sample(
    velocity: Velocity,
    condition: PyTree,
    latents: Float[Array, "b n d"],
    times: Float[Array, " steps1"],
    stages: Sequence[Stage],
    prepare: Prepare | None = None,
    stepper: Stepper = STEPPERS["euler"],
    state: PyTree = None,
) -> tuple[Float[Array, "b n d"], PyTree]:
    """Integrates latents from `times[0]` to `times[-1]`; returns them in float32, and the stepper's final state.

    Times from 1 (noise) to 0 are a complete run. To continue a run, pass the `state` returned by the earlier steps
    (None starts a new one). `stages` is static under jit. Leaving out inactive tokens is exact: it equals masking them
    as keys, since no other token depends on them. `prepare(times [steps, b], condition)` computes for all times at
    once what `velocity` gets in place of t, one slice per step; without it `velocity` gets t [b].
    """
    latents = latents.astype(jnp.float32)
    starts = jnp.broadcast_to(times[:-1, None], (len(times) - 1, latents.shape[0]))
    modulations = starts if prepare is None else prepare(starts, condition)
    carry = latents, stepper.start(latents) if state is None else state
    pairs = jnp.stack([times[:-1], times[1:]], axis=1)
    for stage in stages:

        def step(carry: PyTree, inputs: tuple[PyTree, Array], stage: Stage = stage) -> tuple[PyTree, None]:
            (x, state), (modulation, pair) = carry, inputs
            v = velocity(x, modulation, condition, stage.active_tokens).astype(x.dtype)
            return stepper.step(x, v, pair, state), None

        steps = slice(stage.start, stage.stop)
        inputs = jax.tree.map(lambda x, steps=steps: x[steps], (modulations, pairs))
        carry = jax.lax.scan(step, carry, inputs)[0]
    return carry
