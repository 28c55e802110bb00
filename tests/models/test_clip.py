import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mllmsubj import convert, models
from mllmsubj.errors import UserError
from mllmsubj.models.clip import end_of_prompt
from mllmsubj.models.layers import Compute, init_params

SIZES = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=12,
    layer_norm_eps=1e-5,
)
START, END = 57, 58
"""The end token has the second largest id: padding of 59 would win a legacy argmax, padding of 0 never does."""


def prompts(batch, length, pad, seed=0):
    """Returns rows of a start token, words, an end token at a different position in every row, and padding."""
    ids = np.random.default_rng(seed).integers(3, START, (batch, length), np.int32)
    ids[:, 0] = START
    for row in range(batch):
        end = length - 1 - row
        ids[row, end], ids[row, end + 1 :] = END, pad
    return ids


@cache
def jitted(model):
    return jax.jit(lambda params, ids: model.apply({"params": params}, ids))


def apply(model, params, ids):
    return jitted(model)(params, ids)


@pytest.fixture(scope="module", params=[("quick_gelu", 2), ("gelu", END)], ids=["quick_gelu-legacy", "gelu-first"])
def saved(request, tmp_path_factory):
    from transformers import CLIPTextConfig, CLIPTextModel

    from tests.parity import randomise, save

    activation, end = request.param
    theirs = CLIPTextModel(
        CLIPTextConfig(**SIZES, hidden_act=activation, bos_token_id=START, eos_token_id=end, pad_token_id=0)
    )
    return randomise(theirs), save(theirs, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pair(saved):
    theirs, folder = saved
    config, params = convert.load_clip_text(folder)
    return theirs, models.CLIPTextModel(config), params


@pytest.mark.parity
@pytest.mark.parametrize(("batch", "length"), [(1, 5), (3, 12)])
@pytest.mark.parametrize("pad", [0, END, 59])
def test_clip_pooled(pair, batch, length, pad):
    import torch

    from tests.parity import assert_close

    theirs, model, params = pair
    ids = prompts(batch, length, pad)
    assert_close(apply(model, params, ids), theirs(torch.tensor(ids)).pooler_output)


@pytest.mark.parity
def test_clip_gradients(pair):
    """The gradients are computed with rematerialization, which must not change them."""
    import torch

    from tests.parity import assert_close

    theirs, plain, params = pair
    model = models.CLIPTextModel(plain.config, Compute(remat=True))
    ids = prompts(2, 8, 0)
    weight = np.random.default_rng(3).standard_normal((2, 32), np.float32)

    def loss(params):
        return (model.apply({"params": params}, ids) * weight).sum()

    grads = jax.jit(jax.grad(loss))(params)
    theirs.zero_grad()
    (theirs(torch.tensor(ids)).pooler_output * torch.tensor(weight)).sum().backward()
    layer = theirs.encoder.layers[1]
    assert_close(grads["token_embedding"]["embedding"], theirs.embeddings.token_embedding.weight.grad)
    assert_close(grads["position_embedding"], theirs.embeddings.position_embedding.weight.grad)
    assert_close(grads["layers"]["self_attn"]["k_proj"]["kernel"][1], layer.self_attn.k_proj.weight.grad.T)
    assert_close(grads["layers"]["mlp"]["fc1"]["kernel"][1], layer.mlp.fc1.weight.grad.T)


@pytest.mark.parity
def test_load_clip_text_legacy_names(saved, tmp_path):
    """Older versions of transformers wrote a prefix and a buffer of positions."""
    _, folder = saved
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["text_model.embeddings.position_ids"] = np.arange(12)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    config, params = convert.load_clip_text(tmp_path)
    want_config, want = convert.load_clip_text(folder)
    assert config == want_config
    jax.tree.map(np.testing.assert_array_equal, params, want)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "clip"), ("hidden_act", "relu"), ("eos_token_id", [2, 58]), ("vocab_size", None)],
)
def test_load_clip_text_unsupported(saved, tmp_path, key, value):
    raw = json.loads((saved[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {key: value}))
    with pytest.raises(UserError, match=f"{key} is .*give the text_encoder folder"):
        convert.load_clip_text(tmp_path)


@pytest.fixture(scope="module")
def ours():
    model = models.CLIPTextModel(models.CLIPTextConfig(**SIZES, hidden_act="quick_gelu", eos_token_id=END))
    return model, jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def test_clip_tokens_after_end(ours):
    """The pooled output depends on the tokens before the end of the prompt and not on those after it."""
    model, params = ours
    ids, after = prompts(3, 12, 0), prompts(3, 12, 7)
    assert (ids != after).any()
    np.testing.assert_allclose(apply(model, params, ids), apply(model, params, after), atol=1e-6)
    before = np.where(np.arange(12) == 3, 5, ids)
    assert np.abs(apply(model, params, before) - apply(model, params, ids)).max(axis=1).min() > 1e-3


def test_end_of_prompt():
    assert end_of_prompt(np.array([[5, 3, 7, 7], [7, 1, 9, 7], [1, 2, 3, 4]]), 7).tolist() == [2, 0, 0]
    assert end_of_prompt(np.array([[5, 3, 9, 0], [2, 9, 9, 2]]), 2).tolist() == [2, 1]


def test_clip_prompt_too_long(ours):
    model, params = ours
    with pytest.raises(ValueError, match="13 tokens, max_position_embeddings is 12"):
        model.apply({"params": params}, prompts(1, 13, 0))


def test_clip_dtype(ours):
    model, params = ours
    half = models.CLIPTextModel(model.config, Compute(jnp.bfloat16))
    pooled = jax.eval_shape(jitted(half), params, prompts(2, 8, 0))
    assert (pooled.shape, pooled.dtype) == ((2, 32), jnp.bfloat16)
