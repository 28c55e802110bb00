"""FLUX autoencoder: a diffusers folder (`AutoencoderKL.save_pretrained`), or the original single file."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from mllmsubj.convert import vae_original as original
from mllmsubj.convert.engine import (
    Entry,
    Source,
    Table,
    TensorFiles,
    config_path,
    conv,
    inside,
    linear,
    norm,
    read_config,
    sizes,
)
from mllmsubj.errors import CheckpointError
from mllmsubj.models.layers import abstract_params
from mllmsubj.models.vae import AutoencoderKL, VAEConfig
from mllmsubj.typing import Params

CLASS = "AutoencoderKL"
IMPLEMENTED = {
    "_class_name": CLASS,
    "act_fn": "silu",
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "latents_mean": None,
    "latents_std": None,
}
"""Supported values of `config.json`; a missing key counts as None."""


def load_vae(path: str | Path) -> tuple[VAEConfig, Params]:
    """Returns sizes and parameters (numpy, in the file's dtype) of a FLUX autoencoder, from a folder or a single file.

    Raises UserError for an unsupported autoencoder: quant convolutions, other blocks, no scale or shift.
    """
    return open_vae(path).load()


def open_vae(path: str | Path) -> Source[VAEConfig]:
    """Opens the files for `load_vae` without reading tensors; the layout is detected from their names."""
    tensors = TensorFiles(path)
    is_original = original.MARK in tensors
    # The config.json next to a single file may be another model's.
    if not is_original or (config_path(path).is_file() and read_config(path).get("_class_name") == CLASS):
        config = _read_sizes(path)
    else:
        config = original.read_sizes(tensors)
    entries = original.table(config, table(config)) if is_original else table(config)
    return Source(config, tensors, entries, abstract_params(AutoencoderKL(config)), str(path))


def _read_sizes(path: str | Path) -> VAEConfig:
    raw = read_config(path)
    for key, value, wanted in _refused(raw):
        raise CheckpointError(
            f"{config_path(path)}: {key} is {value!r}, not {wanted}; give the vae folder of a FLUX model"
        )
    return sizes(VAEConfig, raw)


def _refused(raw: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    for key, wanted in IMPLEMENTED.items():
        if raw.get(key) != wanted:
            yield key, raw.get(key), repr(wanted)
    for field in fields(VAEConfig):
        if raw.get(field.name) is None:
            yield field.name, None, "set"
    for key, wanted in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        levels = len(raw["block_out_channels"])
        if raw.get(key) != [wanted] * levels:
            yield key, raw.get(key), f"{levels} × {wanted!r}"


def table(config: VAEConfig) -> Table:
    """Returns an entry for every tensor of `AutoencoderKL`."""
    down, depth = config.block_out_channels, config.layers_per_block
    up = down[::-1]
    return [
        *inside("encoder.", "encoder/", _ends(config)),
        *inside("decoder.", "decoder/", _ends(config)),
        *_levels("encoder.down_blocks", "encoder/down_blocks", (down[0], *down), depth, "downsample"),
        *_levels("decoder.up_blocks", "decoder/up_blocks", (up[0], *up), depth + 1, "upsample"),
    ]


def _ends(config: VAEConfig) -> Table:
    attention = [
        *norm("group_norm", "group_norm", bias=True),
        *(entry for name in ("to_q", "to_k", "to_v") for entry in linear(name, name)),
        *linear("to_out.0", "to_out"),
    ]
    return [
        *conv("conv_in", "conv_in"),
        *inside("mid_block.resnets.0.", "mid_block/resnets_0/", _resnet(shortcut=False)),
        *inside("mid_block.attentions.0.", "mid_block/attentions_0/", attention * config.mid_block_add_attention),
        *inside("mid_block.resnets.1.", "mid_block/resnets_1/", _resnet(shortcut=False)),
        *norm("conv_norm_out", "conv_norm_out", bias=True),
        *conv("conv_out", "conv_out"),
    ]


def _levels(source: str, target: str, widths: tuple[int, ...], depth: int, resample: str) -> Iterator[Entry]:
    """Returns entries of the levels between neighboring `widths`; all but the last change resolution."""
    for level, (before, after) in enumerate(pairwise(widths)):
        for i in range(depth):
            shortcut = i == 0 and before != after
            yield from inside(
                f"{source}.{level}.resnets.{i}.", f"{target}_{level}/resnets_{i}/", _resnet(shortcut=shortcut)
            )
        if level < len(widths) - 2:
            yield from conv(f"{source}.{level}.{resample}rs.0.conv", f"{target}_{level}/{resample}/conv")


def _resnet(shortcut: bool) -> Table:
    return [
        *norm("norm1", "norm1", bias=True),
        *conv("conv1", "conv1"),
        *norm("norm2", "norm2", bias=True),
        *conv("conv2", "conv2"),
        *(conv("conv_shortcut", "conv_shortcut") if shortcut else []),
    ]
