from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj import convert, models
from mllmsubj.models.layers import Compute, abstract_params, init_params
from mllmsubj.models.mllm import merge_patches, place
from mllmsubj.parallel.sharding import make_mesh, parameter_shardings, parameter_specs
from mllmsubj.tree import flatten

IMAGE = 5
VISION = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    image_size=[28, 28],
    patch_size=[7, 7],
    layer_norm_eps=1e-5,
)
TEXT = dict(
    model_type="qwen2",
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
VARIANTS = {
    "layer-norm-untied": (dict(attention_bias=True), dict(rope_type="default", rope_theta=1e6), False),
    "rms-norm-tied": (
        dict(norm_type="rms_norm", use_qk_norm=True),
        dict(rope_type="dynamic", rope_theta=1e4, factor=2.0),
        True,
    ),
}
TILES = {"one": ([1], "right"), "several": ([3], "left"), "rows": ([1, 2], "right"), "rows-left": ([2, 1], "left")}


def inputs(tiles, side, seed=0):
    """Returns ids, mask and tiles: rows of text around the four image tokens of each tile, padded on one side."""
    rng = np.random.default_rng(seed)
    rows = [
        np.concatenate([rng.integers(6, 50, 2), *[[IMAGE] * 4, rng.integers(6, 50, 1)] * n, rng.integers(6, 50, 3 + n)])
        for n in tiles
    ]
    length = max(map(len, rows)) + 2
    ids, mask = np.zeros((2, len(rows), length), np.int32)
    for i, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[i, span], mask[i, span] = row, 1
    return ids, mask, rng.standard_normal((sum(tiles), 28, 28, 3), np.float32)


def tensors(ids, mask, pixels):
    import torch

    pixels = None if pixels is None else torch.tensor(pixels).permute(0, 3, 1, 2)
    return dict(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask), pixel_values=pixels)


def config(**changes):
    vision = models.ViTConfig(
        **VISION | dict(image_size=28, patch_size=7),
        num_channels=3,
        attention_bias=True,
        use_qk_norm=True,
        norm_type="layer_norm",
        layer_scale_init_value=0.1,
    )
    sizes = {name: value for name, value in TEXT.items() if name != "model_type"}
    text = models.Qwen2Config(**sizes, rms_norm_eps=1e-6, rope_theta=1e4)
    joined = models.InternVLConfig(vision, text, image_token_id=IMAGE, downsample_ratio=0.5, tie_word_embeddings=False)
    return replace(joined, **changes)


@pytest.fixture(scope="module")
def ours():
    model = models.InternVL(config())
    return jax.jit(model.apply), jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def build(variant):
    """Returns the PyTorch model with random weights."""
    import transformers

    from tests.parity import randomise

    vision, rope, tied = VARIANTS[variant]
    sizes = transformers.InternVLConfig(
        vision_config=VISION | vision,
        text_config=TEXT | {"rope_parameters": rope},
        image_token_id=IMAGE,
        tie_word_embeddings=tied,
    )
    return randomise(transformers.InternVLForConditionalGeneration(sizes))


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    from tests.parity import save

    theirs = build(request.param)
    found, params = convert.load_mllm(save(theirs, tmp_path_factory.mktemp("internvl")))
    return theirs, models.InternVL(found), params


@pytest.mark.parity
@pytest.mark.parametrize("case", [*TILES, "text"])
def test_internvl_hidden_states(pair, case):
    from tests.parity import assert_close

    theirs, model, params = pair
    ids, mask, pixels = inputs(*TILES.get(case, TILES["rows"]))
    if case == "text":
        ids, pixels = np.where(ids == IMAGE, 7, ids), None
    states = np.asarray(jax.jit(model.apply)({"params": params}, ids, mask, pixels))
    want = theirs(**tensors(ids, mask, pixels), output_hidden_states=True).hidden_states
    assert len(states) == len(want) == TEXT["num_hidden_layers"] + 1
    valid = mask.astype(bool)
    for mine, reference in zip(states, want, strict=True):
        assert_close(mine[valid], reference.detach().numpy()[valid])


@pytest.mark.parity
def test_internvl_logits(pair):
    from tests.parity import assert_close

    theirs, model, params = pair
    args = inputs(*TILES["rows"])
    assert ("lm_head" in params) is not model.config.tie_word_embeddings

    def logits(params, *args):
        return model.apply({"params": params}, model.apply({"params": params}, *args)[-1], method="logits")

    valid = args[1].astype(bool)
    assert_close(
        np.asarray(jax.jit(logits)(params, *args))[valid], theirs(**tensors(*args)).logits.detach().numpy()[valid]
    )


@pytest.mark.parity
def test_internvl_gradients(pair):
    import torch

    from tests.parity import assert_close

    theirs, model, params = pair
    ids, mask, pixels = inputs(*TILES["rows"])
    weight = np.random.default_rng(3).standard_normal((*ids.shape, TEXT["hidden_size"]), np.float32) * mask[..., None]

    def loss(params, pixels):
        return (model.apply({"params": params}, ids, mask, pixels)[1:] * weight).sum()

    grads, pixel_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, pixels)
    args = tensors(ids, mask, pixels)
    args["pixel_values"].requires_grad_()
    theirs.zero_grad()
    states = theirs(**args, output_hidden_states=True).hidden_states[1:]
    sum((state * torch.tensor(weight)).sum() for state in states).backward()
    tower, text = theirs.model.vision_tower.encoder, theirs.model.language_model
    assert_close(pixel_grad, args["pixel_values"].grad.permute(0, 2, 3, 1))
    assert_close(grads["text"]["layers"]["attn"]["k_proj"]["kernel"][1], text.layers[1].self_attn.k_proj.weight.grad.T)
    assert_close(grads["text"]["embed_tokens"]["embedding"], text.embed_tokens.weight.grad)
    assert_close(grads["vision"]["layers"]["layer_scale_1"][0], tower.layer[0].lambda_1.grad)
    assert_close(grads["projector"]["linear_1"]["kernel"], theirs.model.multi_modal_projector.linear_1.weight.grad.T)


@pytest.mark.parametrize("side", ["left", "right"])
def test_internvl_padding(ours, side):
    """Tokens of the padding do not change other states."""
    apply, params = ours
    ids, mask, pixels = inputs([1, 2], side)
    other = np.where(mask, ids, 9)
    valid = mask.astype(bool)
    a, b = (np.asarray(apply({"params": params}, x, mask, pixels))[:, valid] for x in (ids, other))
    np.testing.assert_array_equal(a, b)


def test_internvl_causal(ours):
    """A token does not change the states before it."""
    apply, params = ours
    ids, mask, pixels = inputs([2], "right")
    other = ids.copy()
    other[0, -4] = ids[0, -4] % 40 + 6
    a, b = (np.asarray(apply({"params": params}, x, mask, pixels)) for x in (ids, other))
    np.testing.assert_allclose(a[:, :, :-4], b[:, :, :-4], rtol=0, atol=1e-6)
    assert np.abs(a[-1, :, -4] - b[-1, :, -4]).max() > 1e-3


def test_internvl_unused_tiles(ours):
    """Tiles without image tokens are not used."""
    apply, params = ours
    ids, mask, pixels = inputs([1, 2], "right")
    spare = (np.concatenate([pixels, more]) for more in (pixels[:1], 1.0 - 2.0 * pixels[:1]))
    a, b = (apply({"params": params}, ids, mask, x) for x in spare)
    np.testing.assert_array_equal(a, b)
    without = apply({"params": params}, ids, mask, pixels)  # a different program, which sums in a different order
    np.testing.assert_allclose(a, without, rtol=0, atol=1e-5)


def test_place_order():
    """Features are placed at the image tokens row by row."""
    features, embeds = jnp.arange(1.0, 4.0)[:, None], jnp.zeros((2, 3, 1))
    placed = place(features, embeds, jnp.array([[False, True, True], [False, False, True]]))
    np.testing.assert_array_equal(placed[..., 0], [[0, 1, 2], [0, 0, 3]])


def test_merge_patches_order():
    merged = merge_patches(jnp.arange(16.0)[None, :, None], 2)
    np.testing.assert_array_equal(merged[0], [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])


def test_internvl_remat_and_bfloat16(ours):
    """Rematerialization does not change the states, and bfloat16 changes them little."""
    apply, params = ours
    args = inputs([1], "right")
    plain = apply({"params": params}, *args)
    remat = jax.jit(models.InternVL(config(), Compute(remat=True)).apply)({"params": params}, *args)
    np.testing.assert_allclose(plain, remat, rtol=1e-5, atol=1e-5)
    half = jax.jit(models.InternVL(config(), Compute(dtype=jnp.bfloat16)).apply)({"params": params}, *args)
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(jnp.float32) - plain).max() < 0.05 * np.abs(plain).max()


def test_internvl_sharded():
    model, args = models.InternVL(config(tie_word_embeddings=True)), inputs([1, 2], "right")
    params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
    plain = jax.jit(model.apply)({"params": params}, *args)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, parameter_shardings({"mllm": params}, mesh)["mllm"])
        assert not split["text"]["layers"]["attn"]["q_proj"]["kernel"].is_fully_replicated
        np.testing.assert_allclose(jax.jit(model.apply)({"params": split}, *args), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_internvl_parameter_specs(tied):
    """Every parameter has a sharding."""
    params = abstract_params(models.InternVL(config(tie_word_embeddings=tied)))
    assert ("lm_head" in params) is not tied
    parameter_specs({"mllm": params})


def test_internvl_invalid_shapes(ours):
    """The errors name the size of tiles and the number of tokens."""
    apply, params = ours
    ids, mask, pixels = inputs([1], "right")
    with pytest.raises(ValueError, match=r"\(14, 28, 3\).*\(28, 28, 3\)"):
        apply({"params": params}, ids, mask, pixels[:, :14])
    with pytest.raises(ValueError, match=r"65 tokens.* 64"):
        apply({"params": params}, np.ones((1, 65), np.int32), np.ones((1, 65), np.int32))


def test_internvl3_8b_parameter_count():
    vision = models.ViTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        image_size=448,
        patch_size=14,
        num_channels=3,
        attention_bias=True,
        use_qk_norm=False,
        norm_type="layer_norm",
        layer_norm_eps=1e-6,
        layer_scale_init_value=0.1,
    )
    text = models.Qwen2Config(
        vocab_size=151674,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=32768,
    )
    sizes = models.InternVLConfig(vision, text, image_token_id=151667, downsample_ratio=0.5, tie_word_embeddings=False)
    assert sizes.tokens_per_tile == 256
    leaves = [leaf.size for leaf in flatten(abstract_params(models.InternVL(sizes))).values()]
    assert sum(leaves) == 7_944_373_760
