"""The whole model: contents of its condition, invariances of its velocity, and sharded generation."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.diffusion.schedule import time_grid
from mllmsubj.diffusion.stages import BOTH, MLLM, NOTHING, VAE
from mllmsubj.inference.generator import Generator, _sample
from mllmsubj.models.subject import is_trained
from mllmsubj.parallel.sharding import make_mesh, parameter_shardings
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import ActiveTokens
from tests.parity import assert_close
from tests.small import GRID, SETTINGS, SHIFT, random_like, small_condition, small_inputs, small_model

ALL = ActiveTokens(null=True, text=True, image=True, reference=True)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def params(model):
    return random_like(model.abstract_params())


@pytest.fixture(scope="module")
def condition(model, params):
    run = jax.jit(model.condition)
    return lambda inputs: run(params, inputs, jnp.full((len(inputs.input_ids),), 2.5))


@pytest.fixture(scope="module")
def velocity(model, params):
    """Maps (noise, times or modulation, condition, active_tokens) to the velocity; programs are compiled once."""
    return jax.jit(partial(model.velocity, params, GRID), static_argnames="active_tokens")


def test_condition_shapes(condition):
    c = condition(small_inputs(batch=2, references=((32, 48), (16, 16))))
    assert c.text.shape == (2, 6, 12)
    assert c.image.shape == (2, 8, 12)  # 4 visual tokens a reference
    assert c.null.shape == (2, 3, 12)
    assert c.reference.shape == (2, 2 * 3 + 1, 16)
    assert c.reference_sizes == ((2, 3), (1, 1))
    assert c.text_mask.sum(axis=1).tolist() == [4, 4]


def test_velocity_padding(condition, velocity):
    """Tokens of the padding do not change the velocity."""
    inputs = small_inputs()
    changed = replace(inputs, input_ids=inputs.input_ids.copy())
    changed.input_ids[:, -2:] = 77
    noise = np.random.default_rng(0).standard_normal((1, GRID[0] * GRID[1], 16)).astype(np.float32)
    before, after = (velocity(noise, jnp.full((1,), 0.9), condition(i), active_tokens=BOTH) for i in (inputs, changed))
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_condition_reference_images(condition):
    """The MLLM's text states depend on the reference images; the null condition does not."""
    inputs = small_inputs()
    other = replace(inputs, pixel_values=inputs.pixel_values[:, ::-1])
    before, after = condition(inputs), condition(other)
    assert np.abs(before.text - after.text).max() > 1e-3
    assert np.abs(before.image - after.image).max() > 1e-3
    np.testing.assert_array_equal(before.null, after.null)
    np.testing.assert_array_equal(before.reference, after.reference)


@pytest.mark.parametrize(
    ("dropped", "left"),
    [((), BOTH), (("reference",), MLLM), (("text", "image"), VAE), (("text", "image", "reference"), NOTHING)],
    ids=str,
)
def test_velocity_masked_rows(velocity, dropped, left):
    """Rows are masked as in training, where all tokens are present and each row's mask selects the active ones.

    The first row's velocity is that without the dropped tokens; the second row keeps all conditions.
    """
    c = small_condition(references=((3, 2), (2, 2)))
    noise = np.random.default_rng(0).standard_normal((2, GRID[0] * GRID[1], 16)).astype(np.float32)
    t = jnp.asarray([0.3, 0.8])
    keep = {name: np.array([name not in dropped, True]) for name in ("text", "image", "reference")}
    keep["null"] = np.array(["text" in dropped, False])
    masks = {f"{name}_mask": np.broadcast_to(rows[:, None], getattr(c, name).shape[:2]) for name, rows in keep.items()}
    masks["text_mask"] = masks["text_mask"] & c.text_mask
    together = velocity(noise, t, replace(c, **masks), active_tokens=ALL)
    np.testing.assert_allclose(together[0], velocity(noise, t, c, active_tokens=left)[0], atol=2e-5)
    np.testing.assert_allclose(together[1], velocity(noise, t, c, active_tokens=BOTH)[1], atol=2e-5)


def test_velocity_active_tokens(velocity):
    """The velocity differs between all sets of active tokens."""
    c = small_condition()
    noise = np.random.default_rng(0).standard_normal((2, GRID[0] * GRID[1], 16)).astype(np.float32)
    outs = [velocity(noise, jnp.full((2,), 0.5), c, active_tokens=a) for a in (NOTHING, MLLM, VAE, BOTH)]
    for i, a in enumerate(outs):
        assert all(np.abs(a - b).max() > 1e-2 for b in outs[i + 1 :])


def test_velocity_prepared_modulation(model, params, velocity):
    """The velocity is the same with modulation that is computed for all steps at once."""
    c = small_condition()
    noise = np.random.default_rng(0).standard_normal((2, GRID[0] * GRID[1], 16)).astype(np.float32)
    times = jnp.asarray([[0.9, 0.9], [0.4, 0.4]])
    run = partial(velocity, active_tokens=BOTH)
    prepared = jax.jit(model.prepare)(params, times, c)
    for i in range(2):
        assert_close(run(noise, jax.tree.map(lambda x, i=i: x[i], prepared), c), run(noise, times[i], c), 1e-5)


@pytest.mark.parametrize(("scan", "seen"), [(True, 1), (False, 2)])
def test_encode_images_one_vae(params, scan, seen):
    """Images of one shape share one VAE in the program where layers are scanned; latents are those of each alone."""
    model = small_model(scan_layers=scan)
    pair = tuple(np.random.default_rng(0).uniform(-1, 1, (2, 1, 32, 48, 3)).astype(np.float32))

    def convolutions(pictures):
        return str(jax.make_jaxpr(model.encode_images)(params, pictures)).count("conv_general_dilated[")

    assert convolutions(pair) == seen * convolutions(pair[:1])
    assert convolutions((pair[0], pair[1][:, :16])) == 2 * convolutions(pair[:1])
    found = jax.jit(model.encode_images)(params, pair)
    for picture, latents in zip(pair, found, strict=True):
        jax.tree.map(assert_close, latents, jax.jit(model.encode_image)(params, picture))


def test_is_trained():
    """The DLA and the adapters are trained, in float32; the other parameters are frozen, in bfloat16."""
    shapes = flatten(small_model(lora=True, dtype=jnp.bfloat16).abstract_params())
    trained = {path for path in shapes if is_trained(path)}
    assert {path.split("/")[0] for path in trained} == {"dla", "transformer"}
    assert all(path.startswith("dla/") or path.rpartition("/")[2] in ("lora_a", "lora_b") for path in trained)
    assert {leaf.dtype for path, leaf in shapes.items() if path in trained} == {jnp.dtype("float32")}
    assert {leaf.dtype for path, leaf in shapes.items() if path not in trained} == {jnp.dtype("bfloat16")}


def test_gradients_all_trained_parameters():
    """Every trained parameter has a nonzero gradient in a step of flow matching."""
    model = small_model(lora=True)
    params = flatten(random_like(model.abstract_params()))
    frozen = {path: leaf for path, leaf in params.items() if not is_trained(path)}
    trained = {path: leaf for path, leaf in params.items() if is_trained(path)}
    noise = np.random.default_rng(0).standard_normal((1, GRID[0] * GRID[1], 16)).astype(np.float32)

    def loss(trained, frozen):
        params = unflatten(frozen | trained)
        c = model.condition(params, small_inputs(), jnp.ones((1,)))
        return jnp.mean(model.velocity(params, GRID, noise, jnp.full((1,), 0.7), c, ALL) ** 2)

    grads = jax.jit(jax.grad(loss))(trained, frozen)
    assert {path for path, grad in grads.items() if not np.abs(grad).max() > 0} == set()


def test_generator_sharded(model, params):
    generator, inputs = Generator(model, SHIFT), small_inputs()
    plain = generator(params, inputs, SETTINGS, seed=3, num_images=2)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, parameter_shardings(params, mesh))
        assert not split["transformer"]["double_blocks"]["ff"]["ff_in"]["kernel"].is_fully_replicated
        spread = Generator(model, generator.shift)(split, inputs, SETTINGS, seed=3, num_images=2)
    assert plain.shape == (2, 64, 96, 3)
    assert_close(spread, plain)


def test_generator_seeds(model, params):
    """Image i depends on the seed and on i, and not on the number of images or the batch size."""
    generator, inputs = Generator(model, SHIFT), small_inputs()
    three = generator(params, inputs, SETTINGS, seed=5, num_images=3)
    one = generator(params, inputs, SETTINGS, seed=5, num_images=1)
    by_one = generator(params, inputs, replace(SETTINGS, batch_size=1), seed=5, num_images=3)
    other = generator(params, inputs, SETTINGS, seed=6, num_images=1)
    np.testing.assert_allclose(three[:1], one, atol=1e-4)
    np.testing.assert_allclose(three, by_one, atol=1e-4)
    assert np.abs(three[0] - three[2]).max() > 1e-2
    assert np.abs(one - other).max() > 1e-2


def test_generator_progress(model, params):
    """Calls for each step, which report progress, give the images of the single program."""
    generator, inputs, calls = Generator(model, SHIFT), small_inputs(), []
    whole = generator(params, inputs, SETTINGS, seed=1, num_images=3)
    watched = generator(params, inputs, SETTINGS, seed=1, num_images=3, progress=lambda *at: calls.append(at))
    assert_close(watched, whole)
    assert calls == [(i, 8) for i in range(1, 9)]  # two batches of four steps


def test_generator_guidance_no_recompilation(model, params):
    """Other guidance scales and other generators of a model do not recompile its programs."""
    sizes = []
    for guidance, text in ((2.5, 2.0), (4.0, 3.0)):
        settings = replace(SETTINGS, guidance=guidance, text_guidance=text)
        generator = Generator(model, SHIFT)  # all generators of a model share its programs
        generator(params, small_inputs(), settings, seed=0)
        sizes.append((generator.sample._cache_size(), generator.condition._cache_size()))
    assert sizes[0] == sizes[1]


def test_sample_three_scans(model, params):
    """All steps are one jitted call whose only loops over steps are the three stages' scans, without callbacks."""
    generator, grid = Generator(model, SHIFT), GRID
    times = time_grid(28, grid[0] * grid[1], generator.shift)
    from mllmsubj.diffusion.stages import plan_stages

    stages = plan_stages(times, 0.95, 0.85)
    noise = jnp.zeros((2, grid[0] * grid[1], 16))
    jaxpr = jax.make_jaxpr(partial(_sample, model, grid=grid, stages=stages, cfg=False))(
        params, small_condition(), noise, jnp.asarray(times, jnp.float32), (1.0, 1.0)
    )
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert [eqn.params["length"] for eqn in scans] == [stage.stop - stage.start for stage in stages]
    assert "callback" not in str(jaxpr)
