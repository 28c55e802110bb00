"""Steppers, compared with known solutions and with diffusers' schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.diffusion.sampler import sample
from mllmsubj.diffusion.schedule import ShiftConfig, time_grid
from mllmsubj.diffusion.stages import plan_stages
from mllmsubj.diffusion.steppers import STEPPERS

WEIGHTS = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32) / 2


def velocity(x, t, condition, active_tokens):
    """Returns a velocity that is linear neither in x nor in t."""
    return jnp.tanh(x @ WEIGHTS + condition) + jnp.sin(3 * t)[:, None, None] * x


def run(stepper, steps, tau1=0.9, tau2=0.6, noise=None):
    times = time_grid(steps, 64, ShiftConfig()).astype(np.float32)
    noise = jax.random.normal(jax.random.key(1), (2, 3, 4)) if noise is None else noise
    stages = plan_stages(times, tau1, tau2)
    program = jax.jit(lambda x: sample(velocity, jnp.float32(0.3), x, times, stages, stepper=STEPPERS[stepper])[0])
    return np.asarray(program(noise))


def error(stepper, steps):
    return np.abs(run(stepper, steps) - run("dpmpp_2m", 1000)).max()


def test_euler_order():
    """Twice the steps give half the error."""
    assert 1.6 < error("euler", 40) / error("euler", 80) < 2.5


def test_dpmpp_2m_error():
    """With equal evaluations the error is below a third of Euler's; the first and last steps are of first order."""
    assert error("dpmpp_2m", 40) < error("euler", 40) / 3


def test_stepper_exact_for_known_clean_latents():
    """Where every velocity points from noise to the same clean latents, any stepper ends there."""
    clean = jnp.arange(24.0).reshape(2, 3, 4)

    def straight(x, t, condition, active_tokens):
        return (x - clean) / t[:, None, None]

    times = time_grid(5, 64, ShiftConfig()).astype(np.float32)
    noise = jax.random.normal(jax.random.key(0), clean.shape)
    for stepper in STEPPERS.values():
        found, _ = sample(straight, 0.0, noise, times, plan_stages(times, 0.9, 0.6), stepper=stepper)
        np.testing.assert_allclose(found, clean, atol=2e-5)


@pytest.mark.parametrize("stepper", STEPPERS)
def test_sample_state(stepper):
    """One call per step gives what one call for all steps gives."""
    times = time_grid(6, 64, ShiftConfig()).astype(np.float32)
    x, state = jax.random.normal(jax.random.key(1), (2, 3, 4)), None
    for stage in plan_stages(times, 0.9, 0.6):
        for i in range(stage.start, stage.stop):
            one = (type(stage)(stage.active_tokens, 0, 1),)
            pair = times[i : i + 2]
            x, state = sample(velocity, jnp.float32(0.3), x, pair, one, stepper=STEPPERS[stepper], state=state)
    np.testing.assert_allclose(x, run(stepper, 6), rtol=1e-5, atol=1e-5)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [4, 20])
def test_dpmpp_2m_matches_diffusers(steps):
    import torch
    from diffusers import DPMSolverMultistepScheduler

    times = time_grid(steps, 64, ShiftConfig())
    theirs = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2
    )
    theirs.set_timesteps(steps)
    theirs.sigmas = torch.tensor(times, dtype=torch.float32)
    theirs.timesteps = theirs.sigmas[:-1] * 1000
    noise = np.random.default_rng(2).standard_normal((2, 3, 4)).astype(np.float32)
    x = torch.tensor(noise)
    for i, time in enumerate(theirs.timesteps):
        t = np.full(2, times[i], np.float32)
        v = np.asarray(velocity(jnp.asarray(x.numpy()), t, jnp.float32(0.3), None))
        x = theirs.step(torch.tensor(v), time, x).prev_sample
    np.testing.assert_allclose(run("dpmpp_2m", steps, noise=jnp.asarray(noise)), x.numpy(), rtol=2e-4, atol=2e-4)
