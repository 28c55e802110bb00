"""Attention, rotary embeddings and packing, compared with plain formulas, torch and diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.ops import attention
from mllmsubj.ops.attention import attend
from mllmsubj.ops.patchify import image_ids, pack, reference_ids, unpack
from mllmsubj.ops.rope import axial_rotation, rotate_halves, rotate_interleaved, rotation
from mllmsubj.parallel.target import compiling_for
from tests.parity import assert_close


def qkv(b=2, s=5, z=5, h=4, g=4, k=8):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((b, s, h, k), (b, z, g, k), (b, z, g, k))]


@pytest.mark.parity
@pytest.mark.parametrize("implementation", ["heads", "xla"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("kind", ["plain", "causal", "keys", "full", "causal+keys"])
def test_attend_matches_torch(implementation, groups, kind):
    import torch

    q, k, v = qkv(g=groups)
    allowed = np.ones((2, 1, 5, 5), bool)
    keys = np.ones((2, 1, 1, 5), bool)
    keys[1, ..., 3:] = False
    full = np.random.default_rng(1).random((2, 4, 5, 5)) > 0.3
    full[..., 0] = True
    mask = {"keys": keys, "full": full, "causal+keys": keys}.get(kind)
    causal = "causal" in kind
    ours = jax.jit(lambda q, k, v: attend(q, k, v, mask, causal=causal, implementation=implementation))(q, k, v)
    allowed = allowed if mask is None else allowed & mask
    allowed = allowed & np.tril(np.ones((5, 5), bool)) if causal else allowed
    heads_first = [torch.tensor(x).transpose(1, 2) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=torch.tensor(allowed), enable_gqa=True
    ).transpose(1, 2)
    assert_close(ours, want)


@pytest.mark.parametrize("heads_a_turn", [1, 2, 8])
def test_attend_groups_of_heads(heads_a_turn, monkeypatch):
    """The values and gradients are those of XLA for any number of heads that are computed at once."""
    monkeypatch.setattr(attention, "CACHE", 4 * heads_a_turn * 5 * 6)
    q, k, v = qkv(z=6, g=2)
    mask = np.random.default_rng(1).random((2, 4, 5, 6)) > 0.3
    mask[..., 0] = True
    weight = np.random.default_rng(2).standard_normal(q.shape).astype(np.float32)

    def value_and_gradients(implementation):
        def loss(q, k, v):
            return jnp.sum(attend(q, k, v, mask, implementation=implementation) * weight)

        return jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v))

    for ours, want in zip(value_and_gradients("heads"), value_and_gradients("xla"), strict=True):
        assert_close(ours, want)


@pytest.mark.parametrize("implementation", ["heads", "xla"])
def test_attend_fully_masked(implementation):
    """A query without keys has a finite output."""
    q, k, v = qkv()
    mask = np.zeros((2, 1, 5, 5), bool)
    assert np.isfinite(attend(q, k, v, mask, implementation=implementation)).all()


@pytest.mark.parametrize("implementation", ["heads", "xla"])
def test_attend_bfloat16_softmax(implementation):
    """The softmax of bfloat16 inputs is float32: scores of 300 and 299.9 are one number in bfloat16."""
    q = jnp.full((1, 1, 1, 4), 10.0, jnp.bfloat16)
    k = jnp.stack([jnp.full((1, 1, 4), 15.0), jnp.full((1, 1, 4), 14.9375)], axis=1).astype(jnp.bfloat16)
    v = jnp.asarray([1.0, 0.0], jnp.bfloat16).reshape(1, 2, 1, 1).repeat(4, -1)
    out = attend(q, k, v, implementation=implementation)
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-1.25)), rel=0.01)


def test_rope_relative_positions():
    """Scores depend on the difference of positions only, on every axis."""
    q, k, _ = (jnp.asarray(x) for x in qkv(b=1, s=1, z=1, h=1, g=1, k=16))

    def score(at, other):
        turn = [axial_rotation(jnp.asarray([ids], jnp.float32), (4, 6, 6), 1e4) for ids in (at, other)]
        return float(jnp.sum(rotate_interleaved(q, turn[0]) * rotate_interleaved(k, turn[1])))

    assert score((0, 3, 5), (0, 1, 9)) == pytest.approx(score((2, 13, 25), (2, 11, 29)), rel=1e-4)
    assert score((0, 3, 5), (0, 1, 9)) != pytest.approx(score((0, 3, 5), (0, 2, 9)), rel=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rope_tpu(dtype):
    """For TPUs, pairs are swapped by a matrix product, which gives the same values and derivatives."""
    x = jax.random.normal(jax.random.key(0), (2, 24, 3, 16)).astype(dtype)
    turn = axial_rotation(np.concatenate([image_ids(4, 5), reference_ids((4, 5), [(2, 2)])]), (4, 6, 6), 1e4)
    with compiling_for("tpu"):
        there, slope = jax.jvp(lambda x: rotate_interleaved(x, turn), (x,), (x,))
    assert there.dtype == dtype
    here = rotate_interleaved(x, turn)
    np.testing.assert_allclose(np.float32(there), np.float32(here), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.float32(slope), np.float32(here), rtol=1e-6, atol=1e-6)


@pytest.mark.parity
def test_rope_matches_diffusers_and_transformers():
    import torch
    from diffusers.models.embeddings import apply_rotary_emb
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    x = np.random.default_rng(0).standard_normal((2, 24, 3, 16)).astype(np.float32)
    ids = np.concatenate([image_ids(4, 5), reference_ids((4, 5), [(2, 2)])]) * 30
    want = apply_rotary_emb(torch.tensor(x), FluxPosEmbed(10000, [4, 6, 6])(torch.tensor(ids)), sequence_dim=1)
    assert_close(rotate_interleaved(x, axial_rotation(ids, (4, 6, 6), 1e4)), want)

    cos, sin = rotation(np.arange(24), 16, 1e6)
    both = [torch.tensor(np.concatenate([part, part], -1))[None] for part in (cos, sin)]
    want, _ = apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), *both, unsqueeze_dim=2)
    assert_close(rotate_halves(x, (cos, sin)), want)


@pytest.mark.parity
@pytest.mark.parametrize("size", [(4, 6), (2, 2), (10, 4)])
def test_pack_matches_flux_pipeline(size):
    """Packed latents and position ids are those of FluxPipeline."""
    import torch
    from diffusers import FluxPipeline

    height, width = size
    latents = np.random.default_rng(0).standard_normal((2, height, width, 4)).astype(np.float32)
    first = torch.tensor(latents).permute(0, 3, 1, 2)
    packed = pack(latents)
    np.testing.assert_array_equal(packed, FluxPipeline._pack_latents(first, 2, 4, height, width))
    np.testing.assert_array_equal(unpack(packed, height, width), latents)
    want = FluxPipeline._prepare_latent_image_ids(2, height // 2, width // 2, "cpu", torch.float32)
    np.testing.assert_array_equal(image_ids(height // 2, width // 2), want)


def test_reference_ids_unope():
    """In UNO's UnoPE, each reference starts where everything before it ends, on both axes."""
    ids = reference_ids((4, 5), [(2, 3), (1, 2)])
    assert ids.tolist() == [[0, 4, 5], [0, 4, 6], [0, 4, 7], [0, 5, 5], [0, 5, 6], [0, 5, 7], [0, 6, 8], [0, 6, 9]]
    assert reference_ids((4, 5), []).shape == (0, 3)
