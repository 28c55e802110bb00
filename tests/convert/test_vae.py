"""The original single file of FLUX's autoencoder, compared with diffusers' own converter."""

import numpy as np
import pytest

from mllmsubj import convert
from mllmsubj.errors import UserError
from tests.convert.test_flux import assert_same
from tests.models.test_vae import SIZES, build


def shapes(widths=(8, 16, 16, 16), depth=1, latent=16):
    """Returns name -> shape of every tensor of black-forest-labs' autoencoder."""
    found = {}

    def conv(name, before, after, kernel=3):
        found.update({f"{name}.weight": (after, before, kernel, kernel), f"{name}.bias": (after,)})

    def norm(name, width):
        found.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def resnet(name, before, after):
        norm(f"{name}.norm1", before)
        conv(f"{name}.conv1", before, after)
        norm(f"{name}.norm2", after)
        conv(f"{name}.conv2", after, after)
        if before != after:
            conv(f"{name}.nin_shortcut", before, after, 1)

    top, deep, last = widths[0], widths[-1], len(widths) - 1
    for part, inputs, outputs in (("encoder", (3, top), (deep, 2 * latent)), ("decoder", (latent, deep), (top, 3))):
        conv(f"{part}.conv_in", *inputs)
        for block in ("block_1", "block_2"):
            resnet(f"{part}.mid.{block}", deep, deep)
        norm(f"{part}.mid.attn_1.norm", deep)
        for name in ("q", "k", "v", "proj_out"):
            conv(f"{part}.mid.attn_1.{name}", deep, deep, 1)
        norm(f"{part}.norm_out", outputs[0])
        conv(f"{part}.conv_out", *outputs)
    for i, width in enumerate(widths):
        for j in range(depth):
            resnet(f"encoder.down.{i}.block.{j}", width if j else widths[max(i - 1, 0)], width)
        for j in range(depth + 1):
            resnet(f"decoder.up.{i}.block.{j}", width if j else widths[min(i + 1, last)], width)
        if i < last:
            conv(f"encoder.down.{i}.downsample.conv", width, width)
        if i:
            conv(f"decoder.up.{i}.upsample.conv", width, width)
    return found


def save(folder, **sizes):
    from safetensors.torch import save_file

    original = tensors(**sizes)
    save_file(original, folder / "ae.safetensors")
    return original


def tensors(**sizes):
    import torch

    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes(**sizes).items()}


@pytest.mark.parity
@pytest.mark.parametrize("depth", [1, 2])
def test_load_vae_original(tmp_path, depth):
    """The original file gives the config and the parameters of diffusers' folder."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    theirs, folder = build(tmp_path / "diffusers", layers_per_block=depth)
    original = save(tmp_path, depth=depth)
    theirs.load_state_dict(convert_ldm_vae_checkpoint(original, theirs.config))
    theirs.save_pretrained(folder)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    config, params = convert.load_vae(folder)
    for path in (tmp_path, tmp_path / "ae.safetensors"):
        found_config, found = convert.load_vae(path)
        assert found_config == config
        assert_same(found, params)


@pytest.mark.parity
def test_load_vae_without_config(tmp_path):
    """FLUX.1's 32 groups and its scale are assumed, since no shape of the file has them."""
    save(tmp_path, widths=(32, 64), depth=2, latent=4)
    config, _ = convert.load_vae(tmp_path / "ae.safetensors")
    assert (config.block_out_channels, config.layers_per_block, config.latent_channels) == ((32, 64), 2, 4)
    assert (config.scaling_factor, config.shift_factor) == (SIZES["scaling_factor"], SIZES["shift_factor"])
    save(tmp_path)
    with pytest.raises(UserError, match=r"widths \(8, 16, 16, 16\).*32 groups"):
        convert.load_vae(tmp_path / "ae.safetensors")


@pytest.mark.parity
def test_load_vae_mismatched_tensors(tmp_path):
    """The error names tensors that are unexpected or have another shape."""
    import torch
    from safetensors.torch import save_file

    original = save(tmp_path, widths=(32, 64)) | {"quant_conv.weight": torch.zeros(1)}
    save_file(original, tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match=r"unexpected tensor 'quant_conv\.weight'"):
        convert.load_vae(tmp_path / "ae.safetensors")
    del original["quant_conv.weight"]
    original["decoder.mid.attn_1.q.weight"] = torch.zeros(64, 64)  # no convolution
    save_file(original, tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match=r"attn_1\.q\.weight' has shape \(64, 64\)"):
        convert.load_vae(tmp_path / "ae.safetensors")


def test_load_vae_invalid_file(tmp_path):
    """Missing, pickled and damaged files are errors."""
    with pytest.raises(UserError, match="is not there"):
        convert.load_vae(tmp_path / "ae.safetensors")
    with pytest.raises(UserError, match=r"contains no \.safetensors file"):
        convert.load_vae(tmp_path)
    for start, says in ((b"PK\x03\x04", "pickle"), (b"\x80\x02", "pickle"), (b"<html>", "cannot be read")):
        (tmp_path / "ae.safetensors").write_bytes(start + b"x" * 40)
        with pytest.raises(UserError, match=says):
            convert.load_vae(tmp_path / "ae.safetensors")


def test_load_vae_duplicate_tensor(tmp_path):
    """A tensor in two files is an error."""
    from safetensors.numpy import save_file

    for name in ("a", "b"):
        save_file({"x": np.zeros(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors and b\.safetensors both contain 'x'"):
        convert.load_vae(tmp_path)
