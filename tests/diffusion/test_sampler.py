"""The staged sampler, compared with closed forms for a stub and with masking for the transformer."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.diffusion.guidance import guided
from mllmsubj.diffusion.sampler import sample
from mllmsubj.diffusion.schedule import ShiftConfig, time_grid
from mllmsubj.diffusion.stages import BOTH, MLLM, VAE, VAE_AND_TEXT, ActiveTokens, Stage, plan_stages
from mllmsubj.ops.patchify import image_ids, reference_ids
from tests.parity import assert_close
from tests.small import GRID, SETTINGS, random_like, small_condition, small_model

SHIFT = ShiftConfig(256, 4096, 0.5, 1.15)
STEPS = 6
TIMES = time_grid(STEPS, GRID[0] * GRID[1], SHIFT)
ONE, THREE = ((3, 2),), ((3, 2), (2, 2), (1, 4))


def test_plan_stages_paper():
    plan = plan_stages(np.array([1.0, 0.96, 0.95, 0.9, 0.85, 0.8, 0.5, 0.0]), 0.95, 0.85)
    assert plan == (Stage(MLLM, 0, 3), Stage(BOTH, 3, 5), Stage(VAE, 5, 7))


@pytest.mark.parametrize(
    ("tau1", "tau2", "last", "want"),
    [
        (0, 0, "drop_all", (Stage(MLLM, 0, 6),)),
        (1, 1, "drop_all", (Stage(MLLM, 0, 1), Stage(VAE, 1, 6))),
        (1, 1, "keep_text", (Stage(MLLM, 0, 1), Stage(VAE_AND_TEXT, 1, 6))),
        (TIMES[2], TIMES[2], "drop_all", (Stage(MLLM, 0, 3), Stage(VAE, 3, 6))),
        (
            np.float32(TIMES[2]),
            np.float32(TIMES[4]),
            "drop_all",
            (Stage(MLLM, 0, 3), Stage(BOTH, 3, 5), Stage(VAE, 5, 6)),
        ),
        (1, 0, "drop_all", (Stage(MLLM, 0, 1), Stage(BOTH, 1, 6))),
    ],
    ids=str,
)
def test_plan_stages_thresholds(tau1, tau2, last, want):
    """A step at a threshold belongs to the stage above it, also where the threshold was rounded to float32."""
    assert plan_stages(TIMES, float(tau1), float(tau2), last) == want


@pytest.mark.parametrize(("conditions", "sees"), [("both", BOTH), ("mllm", MLLM), ("vae", VAE)])
def test_settings_stages_one_condition(conditions, sees):
    """Settings that name one set of conditions have one stage."""
    assert replace(SETTINGS, conditions=conditions).stages(TIMES) == (Stage(sees, 0, STEPS),)


def test_sample_trajectory():
    """With a velocity of t and the active tokens, the sum over Euler steps is known in closed form."""

    def velocity(x, t, condition, active_tokens: ActiveTokens):
        weight = (
            active_tokens.text * 1.0
            + active_tokens.image * 10.0
            + active_tokens.reference * 100.0
            + active_tokens.null * 1000.0
        )
        return jnp.broadcast_to(t[:, None, None], x.shape) + weight * condition

    noise = jnp.zeros((2, 3, 4))
    times = np.array([1.0, 0.9, 0.6, 0.2, 0.0], np.float32)
    got, _ = sample(velocity, jnp.float32(0.5), noise, times, plan_stages(times, 0.9, 0.6))
    weights = [11, 11, 111, 1100]
    want = sum((b - a) * (a + 0.5 * w) for a, b, w in zip(times[:-1], times[1:], weights, strict=True))
    np.testing.assert_allclose(got, np.full((2, 3, 4), want), rtol=1e-5)


def test_sample_prepare():
    """Modulation is prepared once for all times, and each step gets its own."""
    calls = []

    def prepare(times, condition):
        calls.append(times.shape)
        return {"double": 2.0 * times}

    def velocity(x, moment, condition, active_tokens):
        return jnp.broadcast_to(moment["double"][:, None, None], x.shape)

    times = np.array([1.0, 0.5, 0.25, 0.0], np.float32)
    got, _ = sample(velocity, None, jnp.zeros((2, 1, 1)), times, plan_stages(times, 0.7, 0.3), prepare)
    assert calls == [(3, 2)]
    np.testing.assert_allclose(got, np.full((2, 1, 1), -0.5 * 2 - 0.25 * 1 - 0.25 * 0.5), rtol=1e-6)


def test_guided_formula():
    """With a velocity that is a number for each set of tokens: v0 + s_r (v_r - v0) + s_t (v - v_r)."""

    def velocity(x, t, condition, active_tokens):
        return jnp.float32(1.0 + 2.0 * active_tokens.reference + 5.0 * active_tokens.mllm) * jnp.ones_like(x)

    v = guided(velocity, 3.0, 7.0)
    at = partial(v, jnp.zeros((1, 1, 1)), jnp.ones(1), None)
    assert at(MLLM).item() == pytest.approx(1 + 3 * 5)
    assert at(VAE).item() == pytest.approx(1 + 7 * 2)
    assert at(BOTH).item() == pytest.approx(1 + 7 * 2 + 3 * 5)
    assert at(VAE_AND_TEXT).item() == pytest.approx(1 + 7 * 2 + 3 * 5)


@pytest.fixture(scope="module")
def model_and_params():
    model = small_model()
    return model, random_like({"transformer": model.abstract_params()["transformer"]})


@pytest.fixture(scope="module")
def masked_velocity(model_and_params):
    """The velocity that the sampler is compared with: all tokens are present, and a mask selects the active ones."""
    model, params = model_and_params

    @jax.jit
    def apply(latents, t, condition, allowed):
        context = jnp.concatenate([condition.null, condition.text, condition.image], axis=1)
        ids = np.concatenate([image_ids(*GRID), reference_ids(GRID, list(condition.reference_sizes))])
        count = [condition.null.shape[1], condition.text.shape[1], condition.image.shape[1], latents.shape[1], len(ids)]
        count[4] -= count[3]
        allowed = jnp.repeat(allowed, np.array(count), total_repeat_length=sum(count))
        mask = jnp.broadcast_to(allowed, (latents.shape[0], sum(count)))
        padded = jnp.pad(condition.text_mask, ((0, 0), (count[0], sum(count[2:]))), constant_values=True)
        return model.transformer.apply(
            {"params": params["transformer"]},
            jnp.concatenate([latents, condition.reference], axis=1),
            context,
            condition.pooled,
            t,
            ids,
            np.zeros((context.shape[1], 3), np.float32),
            condition.guidance,
            mask=mask & padded,
        )[:, : latents.shape[1]]

    def velocity(latents, t, condition, *, null=False, text=False, image=False, reference=False):
        allowed = np.array([null, text, image, True, reference])
        return apply(latents, np.full(latents.shape[:1], t, np.float32), condition, allowed)

    return velocity


def reference_run(velocity, condition, noise, times, tau1, tau2, keep_text, scales):
    """Samples by equation 5 step by step in numpy, and decides at each step which tokens are active."""
    x, (text_scale, reference_scale) = noise, scales
    for now, then in pairwise(times):
        mllm, vae = now >= tau2 - 1e-6, now < tau1 - 1e-6
        see = dict(text=mllm or keep_text, image=mllm, reference=vae)
        see["null"] = not (see["text"] or see["image"])
        v = velocity(x, now, condition, **see)
        if scales != (1.0, 1.0):
            null = velocity(x, now, condition, null=True)
            only = velocity(x, now, condition, null=True, reference=True) if vae else null
            v = null + reference_scale * (only - null) + text_scale * (v - only)
        x = x + np.float32(then - now) * np.asarray(v)
    return x


CASES = [(0.0, 0.0), (1.0, 1.0), (0.9, 0.9), (0.95, 0.6), (float(TIMES[1]), float(TIMES[3])), (1.0, 0.0)]


NUMBERS = {"one": ONE, "three": THREE}
COMBINED = [(taus, *rest) for taus in CASES for rest in (("drop_all", "one"), ("keep_text", "three"))]
COMBINED += [(CASES[3], *rest) for rest in (("keep_text", "one"), ("drop_all", "three"))]
"""All kinds of thresholds with two pairs of last stage and number of references, and one with all four pairs."""


@pytest.mark.parametrize(("taus", "last", "number"), COMBINED, ids=str)
def test_sample_matches_masked(model_and_params, masked_velocity, taus, last, number):
    references = NUMBERS[number]
    check_against_masked(model_and_params, masked_velocity, TIMES, taus, last, references, (1.0, 1.0))


@pytest.mark.parametrize("last", ["drop_all", "keep_text"])
def test_sample_matches_masked_cfg(model_and_params, masked_velocity, last):
    """The samples are compared with classifier-free guidance."""
    check_against_masked(model_and_params, masked_velocity, TIMES, (0.95, 0.6), last, THREE, (3.0, 1.5))


@pytest.mark.parametrize("taus", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.2)], ids=str)
def test_sample_single_step(model_and_params, masked_velocity, taus):
    times = time_grid(1, GRID[0] * GRID[1], SHIFT)
    check_against_masked(model_and_params, masked_velocity, times, taus, "drop_all", ONE, (1.0, 1.0))


def check_against_masked(model_and_params, masked_velocity, times, taus, last, references, scales):
    model, params = model_and_params
    condition = small_condition(references=references)
    noise = np.random.default_rng(9).standard_normal((2, GRID[0] * GRID[1], 16)).astype(np.float32)
    velocity = partial(model.velocity, params, GRID)
    velocity = velocity if scales == (1.0, 1.0) else guided(velocity, *scales)

    @jax.jit
    def run(condition, noise):
        stages = plan_stages(times, *taus, last)
        return sample(
            velocity, condition, noise, jnp.asarray(times, jnp.float32), stages, partial(model.prepare, params)
        )[0]

    want = reference_run(masked_velocity, condition, noise, times, *taus, last == "keep_text", scales)
    assert_close(run(condition, noise), want)
