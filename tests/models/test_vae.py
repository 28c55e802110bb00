import copy
import json
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj import convert, models
from mllmsubj.errors import UserError
from mllmsubj.models.layers import Compute, abstract_params

SIZES = dict(
    in_channels=3,
    out_channels=3,
    block_out_channels=(8, 16, 16, 16),
    layers_per_block=1,
    latent_channels=16,
    norm_num_groups=4,
    scaling_factor=0.3611,
    shift_factor=0.1159,
    mid_block_add_attention=True,
)
SHAPES = [(2, 16, 16), (1, 40, 24), (1, 21, 38)]
"""[batch, height, width]; the last has odd sizes, which need padding below and on the right only."""


def pictures(batch, height, width, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, height, width, 3)).astype(np.float32)


def first(x):
    """Returns a torch tensor with channels first."""
    import torch

    return torch.tensor(np.moveaxis(x, -1, 1))


def last(x):
    return x.detach().movedim(1, -1)


@cache
def jitted(model, method):
    return jax.jit(lambda params, x: model.apply({"params": params}, x, method=method))


def build(folder, **fields):
    """Returns diffusers' autoencoder with random weights, and the folder of its checkpoint."""
    from diffusers import AutoencoderKL

    from tests.parity import randomise, save

    theirs = AutoencoderKL(
        **SIZES | fields,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return randomise(theirs), save(theirs, folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return build(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def pair(saved):
    theirs, folder = saved
    config, params = convert.load_vae(folder)
    return theirs, models.AutoencoderKL(config), params


@pytest.mark.parity
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_vae_encode(pair, shape):
    from tests.parity import assert_close

    theirs, model, params = pair
    images = pictures(*shape)
    mean, logvar = jitted(model, "encode")(params, images)
    want = theirs.encode(first(images)).latent_dist
    assert_close(mean, last(want.mean))
    assert_close(logvar, last(want.logvar))


@pytest.mark.parity
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 5, 3)], ids=str)
def test_vae_decode(pair, shape):
    from tests.parity import assert_close

    theirs, model, params = pair
    latents = np.random.default_rng(1).standard_normal((*shape, 16), np.float32)
    assert_close(jitted(model, "decode")(params, latents), last(theirs.decode(first(latents)).sample))


@pytest.mark.parity
def test_vae_depths(tmp_path):
    """The VAE has no attention in the middle and, as that of FLUX, two residual blocks per level."""
    from tests.parity import assert_close

    theirs, folder = build(tmp_path, mid_block_add_attention=False, layers_per_block=2)
    config, params = convert.load_vae(folder)
    images = pictures(1, 16, 24)
    ours = jitted(models.AutoencoderKL(config), "__call__")(params, images)
    assert_close(ours, last(theirs.decode(theirs.encode(first(images)).latent_dist.mean).sample))


@pytest.mark.parity
def test_vae_gradients(pair):
    """The gradients are computed with rematerialization, which must not change them."""
    from tests.parity import assert_close

    theirs, plain, params = pair
    model = models.AutoencoderKL(plain.config, Compute(remat=True))
    images = pictures(1, 16, 24)
    weight = np.random.default_rng(3).standard_normal(images.shape, np.float32)

    def loss(params, images):
        return (model.apply({"params": params}, images) * weight).sum()

    grads, image_grad = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, images)
    tensor = first(images).requires_grad_()
    reconstruction = theirs.decode(theirs.encode(tensor).latent_dist.mean).sample
    (reconstruction * first(weight)).sum().backward()
    assert_close(image_grad, last(tensor.grad))
    encoder, decoder = theirs.encoder, theirs.decoder
    assert_close(
        grads["encoder"]["down_blocks_1"]["downsample"]["conv"]["kernel"],
        encoder.down_blocks[1].downsamplers[0].conv.weight.grad.permute(2, 3, 1, 0),
    )
    assert_close(grads["decoder"]["conv_norm_out"]["scale"], decoder.conv_norm_out.weight.grad)
    assert_close(
        grads["decoder"]["mid_block"]["attentions_0"]["to_q"]["kernel"],
        decoder.mid_block.attentions[0].to_q.weight.grad.T,
    )


@pytest.mark.parity
def test_vae_logvar_clipped(pair):
    """Values at both ends of the range are clipped."""
    import torch

    from tests.parity import assert_close

    theirs, model, params = pair
    theirs, images = copy.deepcopy(theirs), pictures(*SHAPES[0])
    bias = np.concatenate([np.zeros(16), np.full(8, 1e3), np.full(8, -1e3)]).astype(np.float32)
    theirs.encoder.conv_out.bias.data = torch.tensor(bias)
    encoder = params["encoder"] | {"conv_out": params["encoder"]["conv_out"] | {"bias": bias}}
    _, logvar = jitted(model, "encode")(params | {"encoder": encoder}, images)
    assert (logvar.min(), logvar.max()) == (-30, 20)
    assert_close(logvar, last(theirs.encode(first(images)).latent_dist.logvar))


@pytest.mark.parity
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "AutoencoderTiny"),
        ("use_quant_conv", True),
        ("use_post_quant_conv", None),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 4),
        ("up_block_types", ["UpDecoderBlock2D"] * 3),
        ("shift_factor", None),
        ("latents_mean", [0.0] * 16),
    ],
)
def test_load_vae_unsupported(saved, tmp_path, key, value):
    folder = shutil.copytree(saved[1], tmp_path / "vae")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {key: value}))
    with pytest.raises(UserError, match=f"{key} is .*give the vae folder") as error:
        convert.load_vae(folder)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def ours():
    model = models.AutoencoderKL(models.VAEConfig(**SIZES))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), abstract_params(model))


def test_vae_latent_scaling_round_trip(ours):
    model, _ = ours
    raw = np.random.default_rng(0).standard_normal((1, 2, 2, 16), np.float32)
    np.testing.assert_allclose(model.to_latents(raw), (raw - 0.1159) * 0.3611, rtol=1e-6)
    np.testing.assert_allclose(model.from_latents(model.to_latents(raw)), raw, atol=1e-6)


def test_vae_batch_independence(ours):
    """An image of a batch does not change the latents of another."""
    model, params = ours
    images = pictures(2, 16, 16)
    encode = jitted(model, "encode")
    changed = images.copy()
    changed[1] = 0.5
    np.testing.assert_array_equal(encode(params, images)[0][0], encode(params, changed)[0][0])


def test_vae_shapes_and_dtypes(ours):
    model, params = ours
    half = models.AutoencoderKL(model.config, Compute(jnp.bfloat16))
    for batch, height, width in SHAPES[:2]:
        images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32)
        for moment in jax.eval_shape(jitted(half, "encode"), params, images):
            assert (moment.shape, moment.dtype) == ((batch, height // 8, width // 8, 16), jnp.bfloat16)
        picture = jax.eval_shape(jitted(half, "__call__"), params, images)
        assert (picture.shape, picture.dtype) == (images.shape, jnp.bfloat16)
