"""The encoding and the update of a training step, on the small model."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from jax.sharding import NamedSharding, PartitionSpec

from mllmsubj.config.train import ModesConfig
from mllmsubj.errors import UserError
from mllmsubj.parallel.sharding import make_mesh, parameter_shardings
from mllmsubj.train import modes
from mllmsubj.train.features import FROZEN_ENCODERS
from mllmsubj.train.optimizer import learning_rates, make_optimizer
from mllmsubj.train.state import state_shardings
from mllmsubj.train.step import TIME_BINS
from mllmsubj.tree import flatten, split
from tests.small import small_batch, small_condition, small_inputs, small_model, small_step

STEPS = 3


@cache
def small(**options):
    """Returns `small_step` and its two jitted programs, cached since compiling them is slow."""
    stage, state, frozen = small_step(**options)
    return stage, state, frozen, jax.jit(stage.encoder.encode), jax.jit(stage.step.update)


def trajectory(state, frozen, encode, update, batch, steps=STEPS):
    """Returns (last state, losses) of training on the same batch in every step."""
    encoders, losses = {name: frozen[name] for name in FROZEN_ENCODERS}, []
    for _ in range(steps):
        state, metrics = update(state, frozen["transformer"], encode(encoders, batch))
        losses.append(metrics["loss_sum"] / metrics["count"])
    return jax.device_get(state), jax.device_get(losses)


@pytest.fixture(scope="module")
def plain():
    return trajectory(*small()[1:], small_batch(8))


def close(state, losses, plain, rtol):
    np.testing.assert_allclose(losses, plain[1], rtol=rtol)
    for (path, a), (_, b) in zip(flatten(state.params).items(), flatten(plain[0].params).items(), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(), err_msg=path)


def test_train_step_loss(plain):
    """The loss falls, and steps and non-finite steps are counted."""
    last, losses = trajectory(*small()[1:], small_batch(8), steps=30)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert last.step == 30
    assert last.nonfinite == 0
    np.testing.assert_array_equal(losses[:STEPS], plain[1])


def test_train_step_grad_accum(plain):
    """Accumulated gradients of microbatches are those of the batch."""
    close(*trajectory(*small(grad_accum_steps=4)[1:], small_batch(8)), plain, 2e-4)


def test_train_step_remat_unrolled(plain):
    """Rematerialized and unrolled layers give the same step."""
    close(*trajectory(*small(remat=True, scan_layers=False)[1:], small_batch(8)), plain, 2e-4)


# On two cores the simulated devices of the second mesh now and then wait for each other's collectives until XLA aborts.
@pytest.mark.parametrize("axes", [(2, 4, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_train_step_sharded(plain, axes):
    _, state, frozen, encode, update = small()
    mesh = make_mesh(*axes)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(state, state_shardings(state, mesh))
        frozen = jax.device_put(frozen, parameter_shardings(frozen, mesh))
        batch = jax.device_put(small_batch(8), rows)
        close(*trajectory(sharded, frozen, encode, update, batch), plain, 2e-4)


def test_update_nonfinite():
    """A non-finite update changes only the step number and the count of consecutive non-finite steps."""
    _, state, frozen, encode, update = small()
    encoded = encode({name: frozen[name] for name in FROZEN_ENCODERS}, small_batch(8))
    broken = encoded.replace(target_mean=encoded.target_mean.at[0, 1, 2, 3].set(jnp.nan))
    after, metrics = update(state, frozen["transformer"], broken)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
    assert (after.step, after.nonfinite, metrics["nonfinite"]) == (1, 1, 1)
    again, _ = update(after, frozen["transformer"], broken)
    assert again.nonfinite == 2
    fine, _ = update(again, frozen["transformer"], encoded)
    assert (fine.step, fine.nonfinite) == (3, 0)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (fine.params, state.params)), strict=True))


@pytest.mark.parametrize(("step_number", "decay"), [(0, 0.1), (10_000, 0.98)])
def test_update_ema(step_number, decay):
    """The decay of the EMA grows from 0.1 to the config's 0.98."""
    _, state, frozen, encode, update = small()
    encoded = encode({name: frozen[name] for name in FROZEN_ENCODERS}, small_batch(8))
    after, _ = update(state.replace(step=jnp.asarray(step_number, jnp.int32)), frozen["transformer"], encoded)
    moved = 0.0
    for (path, mean), (_, new), (_, old) in zip(
        *(flatten(tree).items() for tree in (after.ema, after.params, state.ema)), strict=True
    ):
        np.testing.assert_allclose(mean, decay * old + (1 - decay) * new, rtol=1e-5, atol=1e-7, err_msg=path)
        moved = max(moved, float(jnp.abs(new - old).max()))
    assert moved > 1e-4


def test_frozen_parameters():
    """Parameters without a learning rate are frozen and have no optimizer state."""
    _, state, frozen = small_step(rates=(("dla/.*", None), (".*/lora_[ab]", 1e-2)))
    assert all(path.startswith("transformer/") for path in flatten(state.params))
    assert "dla" in frozen
    adam = state.opt_state[1]
    assert list(flatten(adam.mu)) == list(flatten(state.params))


def test_update_stage_subset():
    """A stage that does not train the DLA keeps it in the state unchanged, without optimizer state for it."""
    stage, state, frozen, encode, _ = small()
    step = stage.step
    lora = FrozenDict({path: rate for path, rate in step.rates.items() if path.startswith("transformer/")})
    step = replace(step, rates=lora, optimizer=make_optimizer(step.train, step.stage, lora))
    state = state.replace(opt_state=step.optimizer.init(split(state.params, set(lora))[0]))
    last, _ = trajectory(state, frozen, encode, jax.jit(step.update), small_batch(8), steps=1)
    jax.tree.map(np.testing.assert_array_equal, last.params["dla"], jax.device_get(state.params["dla"]))
    moved = split(last.params, set(lora))[0], split(state.params, set(lora))[0]
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, moved), strict=True))


def test_draw_per_row():
    """Random numbers depend on the seed, the step and the row alone."""
    stage, _, frozen, encode, _ = small()
    step = stage.step
    whole = jax.tree.map(lambda x: x[0], encode({name: frozen[name] for name in FROZEN_ENCODERS}, small_batch(8)))
    draw = jax.jit(lambda rows, step_number: step.draw(whole.replace(row=rows), step_number))
    eight = jax.device_get(draw(jnp.arange(8), 5))
    some = jax.device_get(draw(jnp.array([6, 1]), 5))
    jax.tree.map(lambda all_, two: np.testing.assert_array_equal(all_[[6, 1]], two), eight, some)
    assert len({*eight.t.tolist(), *jax.device_get(draw(jnp.arange(8), 6)).t.tolist()}) == 16
    assert abs(np.corrcoef(eight.noise.ravel(), eight.posterior.ravel())[0, 1]) < 0.1


def test_encode_matches_inference():
    """With one square reference, so without padding, features are those of inference."""
    encoder, _, frozen, encode, _ = small()
    encoder = encoder.encoder
    batch = small_batch(8)
    batch = batch.replace(reference_mask=np.ones_like(batch.reference_mask))
    encoders = {name: frozen[name] for name in FROZEN_ENCODERS}
    got = jax.tree.map(lambda x: x[0], encode(encoders, batch)).features
    mean, std = (np.asarray(x, np.float32) for x in (encoder.reference.mean, encoder.reference.std))
    inputs = small_inputs(8, ((64, 64),)).replace(
        pixel_values=(batch.tiles[:, 0] / np.float32(255) - mean) / std,
        references=(batch.references[:, 0] / np.float32(127.5) - 1,),
    )
    want = jax.jit(encoder.model.encode)(encoders, inputs)
    for name in ("text", "image", "null", "pooled", "references"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_encode_without_vae_branch():
    """A stage without the VAE branch encodes no references."""
    _, state, frozen, encode, update = small(modes=(0.0, 0.9, 0.0, 0.1))
    encoded = encode({name: frozen[name] for name in FROZEN_ENCODERS}, small_batch(4))
    assert encoded.features.references.shape == (1, 4, 0, 16)
    assert encoded.features.reference_mask is None
    _, metrics = update(state, frozen["transformer"], encoded)
    assert np.isfinite(metrics["loss_sum"])


def test_update_memory():
    """By the compiler's count, gradients, optimizer state and EMA take memory for the trained parameters alone."""
    stage, state, frozen, *_ = small()
    encoded = jax.eval_shape(stage.encoder.encode, {name: frozen[name] for name in FROZEN_ENCODERS}, small_batch(4))
    compiled = jax.jit(stage.step.update, donate_argnums=0).lower(state, frozen["transformer"], encoded).compile()
    memory = compiled.memory_analysis()
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    trained, base = size(state.params), size(frozen["transformer"])
    counters = 4 * 4
    assert size(state) == 4 * trained + counters  # parameters, Adam's two moments, EMA
    inputs = sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(encoded))
    assert memory.argument_size_in_bytes <= 4 * trained + base + inputs + 4096
    assert memory.output_size_in_bytes <= 4 * trained + 4096
    assert memory.alias_size_in_bytes >= 4 * trained  # the state is replaced in place


@pytest.mark.parametrize("number", range(4))
def test_masked_matches_dropped_tokens(number):
    """Masking tokens of a mode gives the same velocity as the sampler's stage of that name, which drops them."""
    model, condition = small_model(), small_condition()
    params = {"transformer": small()[2]["transformer"]}
    latents, t = jnp.asarray(np.random.default_rng(1).standard_normal((2, 24, 16)), jnp.float32), jnp.array([0.3, 0.8])
    active_tokens_of = modes.active_tokens_of(ModesConfig(0.25, 0.25, 0.25, 0.25))
    rows = modes.mask_condition(condition, jnp.full(2, number))
    velocity = jax.jit(model.velocity, static_argnums=(1, 5))
    mask_condition = velocity(params, (4, 6), latents, t, rows, active_tokens_of)
    dropped = velocity(params, (4, 6), latents, t, condition, list(modes.MODES.values())[number])
    np.testing.assert_allclose(mask_condition, dropped, rtol=1e-4, atol=1e-5)


def test_draw_modes():
    """Modes are drawn with their shares."""
    shares = ModesConfig(0.6, 0.15, 0.15, 0.1)
    drawn = jax.vmap(lambda key: modes.draw(key, shares))(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 20_000, [0.6, 0.15, 0.15, 0.1], atol=0.02)
    assert modes.active_tokens_of(ModesConfig(0.0, 0.9, 0.0, 0.1)) == modes.ActiveTokens(
        null=True, text=True, image=True
    )
    never = jax.vmap(lambda key: modes.draw(key, ModesConfig(0.0, 1.0, 0.0, 0.0)))(
        jax.random.split(jax.random.key(0), 99)
    )
    assert set(np.asarray(never)) == {1}


def test_learning_rates_invalid():
    """A pattern without a matching parameter, or rates that freeze every parameter, are errors."""
    stage, state, *_ = small()
    for rates, message in (
        ((("dlaa/.*", 1e-3),), "'dlaa/.\\*' matches no parameter"),
        (((".*", None),), "every parameter is frozen"),
    ):
        with pytest.raises(UserError, match=message):
            learning_rates(state.params, replace(stage.step.stage, learning_rates=rates))


def test_update_binned_metrics():
    """Each row's loss is in the bins of its time and its mode."""
    stage, state, frozen, encode, update = small()
    batch = small_batch(8)
    batch.skipped[3] = 2
    encoded = encode({name: frozen[name] for name in FROZEN_ENCODERS}, batch)
    _, metrics = update(state, frozen["transformer"], encoded)
    random_inputs = jax.jit(stage.step.draw)(jax.tree.map(lambda x: x[0], encoded), 0)
    times = np.bincount(
        np.minimum(np.asarray(random_inputs.t) * TIME_BINS, TIME_BINS - 1).astype(int), minlength=TIME_BINS
    )
    np.testing.assert_array_equal(metrics["by_time"][1], times)
    np.testing.assert_array_equal(metrics["by_mode"][1], np.bincount(random_inputs.mode, minlength=len(modes.NAMES)))
    for name in ("by_time", "by_mode"):
        assert np.sum(metrics[name][0]) == pytest.approx(float(metrics["loss_sum"]), rel=1e-5)
    assert (metrics["count"], metrics["skipped"]) == (8, 2)
