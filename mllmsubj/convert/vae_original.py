"""FLUX autoencoder in black-forest-labs' single file (`ae.safetensors`).

The names are from black-forest-labs/flux `src/flux/modules/autoencoder.py`, their mapping to diffusers from its
`convert_ldm_vae_checkpoint`.
"""

from dataclasses import replace

from mllmsubj.convert.engine import Table, TensorFiles
from mllmsubj.convert.renames import Rename, renamed
from mllmsubj.errors import CheckpointError
from mllmsubj.models.vae import VAEConfig

MARK = "decoder.mid.block_1.norm1.weight"
"""Tensor that identifies the layout."""
GROUPS, SCALE, SHIFT = 32, 0.3611, 0.1159
"""Values of FLUX.1, which no shape determines."""


def read_sizes(tensors: TensorFiles) -> VAEConfig:
    """Infers the sizes of a FLUX.1 autoencoder from shapes; raises UserError if it cannot be one."""

    def count(pattern: str) -> int:
        return next(i for i in range(len(tensors) + 1) if pattern.format(i) not in tensors)

    levels = count("encoder.down.{}.block.0.conv1.weight")
    widths = tuple(tensors.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels))
    if any(width % GROUPS for width in widths):
        raise CheckpointError(
            f"{tensors.folder}: widths {widths} are no multiples of FLUX.1's {GROUPS} groups; other autoencoders need "
            "the config.json of diffusers beside the file"
        )
    return VAEConfig(
        in_channels=tensors.shape("encoder.conv_in.weight")[1],
        out_channels=tensors.shape("decoder.conv_out.weight")[0],
        block_out_channels=widths,
        layers_per_block=count("encoder.down.0.block.{}.conv1.weight"),
        latent_channels=tensors.shape("decoder.conv_in.weight")[1],
        norm_num_groups=GROUPS,
        mid_block_add_attention="decoder.mid.attn_1.q.weight" in tensors,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
    )


def table(config: VAEConfig, entries: Table) -> Table:
    """Converts diffusers' entries to the original names, where attention projections are 1 × 1 convolutions."""
    return [
        replace(entry, layout="pixel") if entry.layout == "linear" else entry
        for entry in renamed(entries, _renames(len(config.block_out_channels)))
    ]


def _renames(levels: int) -> list[Rename]:
    return [
        Rename(r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
        Rename(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        # The original numbers decoder levels from full resolution, diffusers from the latents.
        *(Rename(rf"up_blocks\.{i}\.resnets", f"up.{levels - 1 - i}.block") for i in range(levels)),
        *(Rename(rf"up_blocks\.{i}\.upsamplers\.0", f"up.{levels - 1 - i}.upsample") for i in range(levels)),
        Rename(r"mid_block\.resnets\.0", "mid.block_1"),
        Rename(r"mid_block\.resnets\.1", "mid.block_2"),
        Rename(r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        Rename(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        Rename(r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        Rename(r"conv_shortcut", "nin_shortcut"),
        Rename(r"conv_norm_out", "norm_out"),
    ]
