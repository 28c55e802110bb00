"""LAP in parity with diffusers' Krea2TextFusion, and properties of the Dual Layer Aggregator."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.errors import UserError
from mllmsubj.models.dla import DLAConfig, DualLayerAggregator, LayerwiseAttentionPooling
from tests.small import initialized

CONFIG = DLAConfig(
    num_states=5,
    states=(0, 5),
    shared=False,
    input_dim=16,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=24,
    num_blocks=2,
    num_refiner_blocks=2,
    norm_states=False,
    eps=1e-5,
    context_dim=20,
)


def states(tokens=6, batch=2, seed=0):
    return np.random.default_rng(seed).standard_normal((CONFIG.num_states, batch, tokens, 16)).astype(np.float32)


def krea_table():
    from mllmsubj.convert.engine import linear, norm, repeat

    projections = {"attn.to_q": "to_q", "attn.to_k": "to_k", "attn.to_v": "to_v", "attn.to_gate": "to_gate"}
    projections |= {"attn.to_out.0": "to_out", "ff.gate": "gate_proj", "ff.up": "up_proj", "ff.down": "down_proj"}
    norms = {"norm1": "norm1", "norm2": "norm2", "attn.norm_q": "norm_q", "attn.norm_k": "norm_k"}
    block = [e for source, target in projections.items() for e in linear(source, target, bias=False)]
    block += [e for source, target in norms.items() for e in norm(source, target)]
    return [
        *repeat(2, "layerwise_blocks.{i}.", "blocks/", block),
        *linear("projector", "pool", bias=False),
        *repeat(2, "refiner_blocks.{i}.", "refiner_blocks/", block),
    ]


@pytest.mark.parity
@pytest.mark.parametrize("refiner", [0, 2])
@pytest.mark.parametrize("tokens", [1, 6])
def test_lap_matches_krea2_text_fusion(refiner, tokens):
    import torch
    from diffusers.models.transformers.transformer_krea2 import Krea2TextFusion

    from mllmsubj.convert.engine import convert
    from mllmsubj.models.layers import abstract_params
    from tests.parity import assert_close, randomise

    config = dataclasses.replace(CONFIG, num_refiner_blocks=refiner)
    theirs = randomise(Krea2TextFusion(5, 16, 4, 2, 24, 2, refiner, 1e-5))
    # Krea 2 stores its norm scales as differences from one.
    tensors = {k: v.numpy() + (1.0 if "norm" in k else 0.0) for k, v in theirs.state_dict().items()}
    table = [entry for entry in krea_table() if refiner or "refiner" not in entry.source]
    model = LayerwiseAttentionPooling(config)
    params = convert(tensors, table, abstract_params(model), "krea2")

    x, mask = states(tokens), np.ones((2, tokens), bool)
    mask[1, tokens // 2 + 1 :] = False
    ours = jax.jit(model.apply)({"params": params}, x, mask)
    want = theirs(torch.tensor(x).permute(1, 2, 0, 3), torch.tensor(mask)[:, None, None, :])
    assert_close(np.asarray(ours)[mask], want.detach().numpy()[mask])

    weight = np.random.default_rng(1).standard_normal(want.shape).astype(np.float32) * mask[..., None]
    grads = jax.jit(jax.grad(lambda p: (model.apply({"params": p}, x, mask) * weight).sum()))(params)
    (want * torch.tensor(weight)).sum().backward()
    assert_close(grads["blocks"]["to_v"]["kernel"][0], theirs.layerwise_blocks[0].attn.to_v.weight.grad.T)
    assert_close(grads["pool"]["kernel"], theirs.projector.weight.grad.T)


def made(config):
    """Returns the compiled `apply` of an aggregator and its parameters."""
    model = DualLayerAggregator(config)
    return jax.jit(lambda params, *states: model.apply({"params": params}, *states)), initialized(model)


@pytest.fixture(scope="module")
def dla():
    config = dataclasses.replace(CONFIG, num_refiner_blocks=0, norm_states=True, width=8)
    return made(config)


def test_dla_shapes(dla):
    """A smaller width adds a projection down to it."""
    apply, params = dla
    text, image = apply(params, states(6), states(3))
    assert text.shape == (2, 6, 20)
    assert image.shape == (2, 3, 20)
    assert params["text"]["lap"]["down"]["kernel"].shape == (16, 8)


def test_dla_token_independence(dla):
    """Without a refiner a token depends on its own layers' states alone, and text never on images."""
    apply, params = dla
    x, changed = states(6), states(6)
    changed[:, :, 2] += 1.0
    before, image = apply(params, x, x)
    after, _ = apply(params, changed, x)
    same = np.isclose(before, after, atol=1e-6).all(axis=(0, 2))
    assert same.tolist() == [True, True, False, True, True, True]
    _, image_after = apply(params, changed, x)
    np.testing.assert_array_equal(image, image_after)


def test_dla_gradient_all_states(dla):
    """The output depends on every layer's states."""
    apply, params = dla

    def pooled(x):
        return jnp.sum(apply(params, x, x)[0] ** 2)

    grads = jax.jit(jax.grad(pooled))(states(2))
    assert (np.abs(np.asarray(grads)).max(axis=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("pooled", [(4, 5), (1, 3)])
def test_dla_states_range(pooled):
    """The output depends on the states in the range `states` and on no others."""
    apply, params = made(dataclasses.replace(CONFIG, norm_states=True, states=pooled))
    assert params["text"]["lap"]["layer_norms"].shape == (pooled[1] - pooled[0], 16)

    def pool(x):
        return jnp.sum(apply(params, x, x)[1] ** 2)

    counts = np.abs(np.asarray(jax.jit(jax.grad(pool))(states(2)))).max(axis=(1, 2, 3)) > 0
    assert counts.tolist() == [pooled[0] <= state < pooled[1] for state in range(5)]


@pytest.mark.parametrize("pooled", [(0, 6), (-1, 5), (3, 3), (4, 2)])
def test_dla_config_invalid_states(pooled):
    with pytest.raises(UserError, match=r"model\.dla\.states is \(.*\); it must be a range .* within \(0, 5\)"):
        dataclasses.replace(CONFIG, states=pooled)


def test_dla_shared():
    """With `shared`, text and images use the parameters of the text half; the result is that of equal halves."""
    apply, params = made(dataclasses.replace(CONFIG, shared=True))
    assert list(params) == ["text"]
    text, image = apply(params, states(4), states(4))
    np.testing.assert_array_equal(text, image)
    alone, _ = jax.jit(DualLayerAggregator(CONFIG).apply)(
        {"params": params | {"image": params["text"]}}, states(4), states(4)
    )
    np.testing.assert_array_equal(text, alone)
