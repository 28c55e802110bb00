"""Steppers: update rules of a sampler from one time to the next, given the velocity."""

from typing import Literal, Protocol, runtime_checkable

import jax.numpy as jnp

from mllmsubj.typing import Array, Float, PyTree

Name = Literal["euler", "dpmpp_2m"]


@runtime_checkable
class Stepper(Protocol):
    """Update rule for one step of the flow x_t = (1 - t) x_0 + t noise, whose velocity v is noise - x_0."""

    def start(self, latents: Float[Array, "b n d"]) -> PyTree:
        """Returns the state before the first step; it is passed from step to step, across stages."""
        ...

    def step(
        self,
        latents: Float[Array, "b n d"],
        velocity: Float[Array, "b n d"],
        times: Float[Array, " 2"],
        state: PyTree,
    ) -> tuple[Float[Array, "b n d"], PyTree]:
        """Returns latents at `times[1]` from those at `times[0]`, where `velocity` was evaluated, and the new state."""
        ...


class Euler:
    """Euler's method, x ← x + (s - t) v. Source: diffusers `FlowMatchEulerDiscreteScheduler.step`."""

    def start(self, latents: Float[Array, "b n d"]) -> PyTree:
        """Returns an empty state."""
        return ()

    def step(
        self,
        latents: Float[Array, "b n d"],
        velocity: Float[Array, "b n d"],
        times: Float[Array, " 2"],
        state: PyTree,
    ) -> tuple[Float[Array, "b n d"], PyTree]:
        """Takes an Euler step."""
        return latents + (times[1] - times[0]) * velocity, state


class DPMSolverPP2M:
    """DPM-Solver++(2M), of second order by reusing the previous step's prediction, at the cost of Euler's method.

    With alpha = 1 - t, sigma = t and lambda = log(alpha / sigma), a step from t to s is
    x ← (s / t) x + (alpha_s - alpha_t s / t) (x0 + r (x0 - previous x0) / 2), r = (lambda_s - lambda_t) / (lambda_t -
    previous lambda). The first step, which has no previous one, and the last, where r is infinite, are of first order.
    Source: arXiv 2211.01095, Algorithm 2; diffusers `DPMSolverMultistepScheduler` with `use_flow_sigmas`.
    """

    def start(self, latents: Float[Array, "b n d"]) -> PyTree:
        """Returns a zero prediction at lambda = -inf, which marks the first step."""
        return jnp.zeros_like(latents), jnp.asarray(-jnp.inf, latents.dtype)

    def step(
        self,
        latents: Float[Array, "b n d"],
        velocity: Float[Array, "b n d"],
        times: Float[Array, " 2"],
        state: PyTree,
    ) -> tuple[Float[Array, "b n d"], PyTree]:
        """Takes a second-order step; the first and the last are of first order."""
        (t, s), (previous, log_ratio_before) = times, state
        clean = latents - t * velocity
        log_ratio = jnp.log1p(-t) - jnp.log(t)  # lambda: -inf at t = 1
        ahead = jnp.log1p(-s) - jnp.log(s)  # inf at s = 0
        behind = log_ratio - log_ratio_before
        is_first_order = jnp.isinf(log_ratio_before) | jnp.isinf(ahead)
        ratio = jnp.where(is_first_order, 0.0, (ahead - log_ratio) / jnp.where(is_first_order, 1.0, behind))
        blended = clean + 0.5 * ratio * (clean - previous)
        moved = (s / t) * latents + ((1 - s) - (1 - t) * (s / t)) * blended
        return moved, (clean, log_ratio)


STEPPERS: dict[Name, Stepper] = {"euler": Euler(), "dpmpp_2m": DPMSolverPP2M()}
"""Steppers by their name in `sampling.stepper`."""
