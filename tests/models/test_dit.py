from functools import partial

import jax
import numpy as np
import pytest

from mllmsubj import convert, models
from mllmsubj.models.layers import init_params
from mllmsubj.ops.patchify import image_ids, reference_ids

SIZES = dict(
    in_channels=16,
    num_layers=2,
    num_single_layers=3,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=24,
    pooled_projection_dim=12,
    axes_dims_rope=(4, 6, 6),
)
CONFIG = models.FluxConfig(**SIZES, guidance_embeds=True)


def inputs(batch=2, image=(4, 6), references=((3, 2), (2, 2), (4, 4)), txt=7, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.concatenate([image_ids(*image), reference_ids(image, list(references))])
    return {
        "hidden_states": rng.standard_normal((batch, len(ids), 16), np.float32),
        "encoder_hidden_states": rng.standard_normal((batch, txt, 24), np.float32),
        "pooled_projections": rng.standard_normal((batch, 12), np.float32),
        "timestep": np.linspace(0.1, 1.0, batch, dtype=np.float32),
        "img_ids": ids,
        "txt_ids": np.zeros((txt, 3), np.float32),
        "guidance": np.linspace(1.0, 4.0, batch, dtype=np.float32),
    }


def apply(params, args, **fields):
    return models.FluxTransformer(CONFIG, **fields).apply({"params": params}, **args)


@pytest.fixture(scope="module")
def params():
    return jax.jit(partial(init_params, models.FluxTransformer(CONFIG)))(jax.random.key(1))


@pytest.fixture(scope="module", params=[True, False], ids=["guidance", "no-guidance"])
def pair(request, tmp_path_factory):
    from diffusers import FluxTransformer2DModel

    from tests.parity import randomise, save

    theirs = randomise(FluxTransformer2DModel(**SIZES, guidance_embeds=request.param))
    return theirs, *convert.load_transformer(save(theirs, tmp_path_factory.mktemp("flux")))


@pytest.mark.parity
@pytest.mark.parametrize(
    "shape", [dict(references=()), dict(batch=1, image=(2, 2), txt=1, references=()), dict()], ids=str
)
def test_flux_velocity(pair, shape):
    import torch

    from tests.parity import assert_close

    theirs, config, params = pair
    args = inputs(**shape)
    if not config.guidance_embeds:
        args["guidance"] = None
    ours = jax.jit(models.FluxTransformer(config).apply)({"params": params}, **args)
    want = theirs(**{k: v if v is None else torch.tensor(v) for k, v in args.items()}).sample
    assert_close(ours, want)


@pytest.mark.parity
def test_flux_mask(pair):
    """The output with masked tokens is that of diffusers, which has no mask, without these tokens."""
    import torch

    from tests.parity import assert_close

    theirs, config, params = pair
    args = inputs()
    if not config.guidance_embeds:
        args["guidance"] = None
    mask = np.ones((2, 7 + args["hidden_states"].shape[1]), bool)
    mask[:, 4:7] = False
    model = models.FluxTransformer(config)
    ours = jax.jit(partial(model.apply, output_tokens=24))({"params": params}, **args, mask=mask)
    args |= {name: args[name][..., :4, :] for name in ("encoder_hidden_states", "txt_ids")}
    want = theirs(**{k: v if v is None else torch.tensor(v) for k, v in args.items()}).sample
    assert_close(ours, want[:, :24])


@pytest.mark.parity
def test_flux_gradients(pair):
    import torch

    from tests.parity import assert_close

    theirs, config, params = pair
    args = inputs(batch=1)
    if not config.guidance_embeds:
        args["guidance"] = None
    model = models.FluxTransformer(config)
    weight = np.random.default_rng(3).standard_normal((1, args["hidden_states"].shape[1], 16), np.float32)

    def loss(params, txt):
        return (model.apply({"params": params}, **args | {"encoder_hidden_states": txt}) * weight).sum()

    grads, txt_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, args["encoder_hidden_states"])
    tensors = {k: v if v is None else torch.tensor(v) for k, v in args.items()}
    tensors["encoder_hidden_states"].requires_grad_()
    (theirs(**tensors).sample * torch.tensor(weight)).sum().backward()
    assert_close(txt_grad, tensors["encoder_hidden_states"].grad)
    assert_close(
        grads["double_blocks"]["attn"]["to_k"]["kernel"][1], theirs.transformer_blocks[1].attn.to_k.weight.grad.T
    )
    assert_close(
        grads["single_blocks"]["proj_out"]["kernel"][2], theirs.single_transformer_blocks[2].proj_out.weight.grad.T
    )
