"""FLUX transformer in black-forest-labs' single file (`flux1-dev.safetensors`): fused projections, other names.

The names are from black-forest-labs/flux `src/flux/model.py`, their mapping to diffusers from its
`convert_flux_transformer_checkpoint_to_diffusers`.
"""

import re

from mllmsubj.convert.engine import TensorFiles
from mllmsubj.convert.renames import Rename, fused
from mllmsubj.errors import CheckpointError
from mllmsubj.models.dit import MLP_RATIO, FluxConfig

AXES = {128: (16, 56, 56)}
"""Channels of a head -> channels rotated by each id axis, which no shape determines."""
PREFIX = "model.diffusion_model."
"""Prefix that some tools add to every name."""
MARK = "double_blocks.0.img_attn.qkv.weight"


def prefix(tensors: TensorFiles) -> str | None:
    """Returns the prefix of every name, which may be empty, or None if the files have another layout."""
    return next((start for start in ("", PREFIX) if start + MARK in tensors), None)


def read_sizes(tensors: TensorFiles, start: str) -> FluxConfig:
    """Infers the sizes from shapes; raises UserError for heads that are not FLUX's."""

    def shape(name: str) -> tuple[int, ...]:
        return tensors.shape(start + name)

    def blocks(kind: str) -> int:
        found = [re.match(rf"{re.escape(start)}{kind}\.(\d+)\.", name) for name in tensors]
        return max((int(match[1]) for match in found if match), default=-1) + 1

    width, channels = shape("img_in.weight")
    (head,) = shape("double_blocks.0.img_attn.norm.query_norm.scale")
    if head not in AXES:
        raise CheckpointError(
            f"{tensors.folder}: heads of {head} channels; FLUX.1's have {', '.join(map(str, AXES))}, other models need "
            "the config.json of diffusers beside the file"
        )
    return FluxConfig(
        in_channels=channels,
        num_layers=blocks("double_blocks"),
        num_single_layers=blocks("single_blocks"),
        attention_head_dim=head,
        num_attention_heads=width // head,
        joint_attention_dim=shape("txt_in.weight")[1],
        pooled_projection_dim=shape("vector_in.in_layer.weight")[1],
        guidance_embeds=start + "guidance_in.in_layer.weight" in tensors,
        axes_dims_rope=AXES[head],
    )


def renames(config: FluxConfig) -> list[Rename]:
    """Returns the renames from diffusers' names to the original ones."""
    width = config.width
    single, into = r"^single_transformer_blocks\.(\d+)\.", r"single_blocks.\1."
    parts = [*(rf"{single}attn\.to_{part}(?=\.)" for part in "qkv"), rf"{single}proj_mlp(?=\.)"]
    return [
        Rename(r"^x_embedder", "img_in"),
        Rename(r"^context_embedder", "txt_in"),
        Rename(r"^time_text_embed\.timestep_embedder", "time_in"),
        Rename(r"^time_text_embed\.text_embedder", "vector_in"),
        Rename(r"^time_text_embed\.guidance_embedder", "guidance_in"),
        Rename(r"\.linear_1\.", ".in_layer."),
        Rename(r"\.linear_2\.", ".out_layer."),
        *_double("img", "to_{}", "to_out.0", "norm_{}", "ff", "norm1", width),
        *_double("txt", "add_{}_proj", "to_add_out", "norm_added_{}", "ff_context", "norm1_context", width),
        *fused(parts, f"{into}linear1", [width, width, width, MLP_RATIO * width]),
        Rename(rf"{single}attn\.norm_q\.weight", f"{into}norm.query_norm.scale"),
        Rename(rf"{single}attn\.norm_k\.weight", f"{into}norm.key_norm.scale"),
        Rename(rf"{single}proj_out", f"{into}linear2"),
        Rename(rf"{single}norm\.linear", f"{into}modulation.lin"),
        # The original order is shift, scale; in diffusers and here it is scale, shift.
        Rename(r"^norm_out\.linear", "final_layer.adaLN_modulation.1", ((width, 2 * width), (0, width)), 2 * width),
        Rename(r"^proj_out", "final_layer.linear"),
    ]


def _double(stream: str, qkv: str, out: str, norm: str, mlp: str, modulation: str, width: int) -> list[Rename]:
    """Returns the renames of one stream of the double blocks; all names except `stream` are diffusers'."""
    double, into = r"^transformer_blocks\.(\d+)\.", rf"double_blocks.\1.{stream}_"
    return [
        *fused([rf"{double}attn\.{qkv.format(part)}(?=\.)" for part in "qkv"], f"{into}attn.qkv", [width] * 3),
        Rename(rf"{double}attn\.{norm.format('q')}\.weight", f"{into}attn.norm.query_norm.scale"),
        Rename(rf"{double}attn\.{norm.format('k')}\.weight", f"{into}attn.norm.key_norm.scale"),
        Rename(rf"{double}attn\.{re.escape(out)}", f"{into}attn.proj"),
        Rename(rf"{double}{mlp}\.net\.0\.proj", f"{into}mlp.0"),
        Rename(rf"{double}{mlp}\.net\.2", f"{into}mlp.2"),
        Rename(rf"{double}{modulation}\.linear", f"{into}mod.lin"),
    ]
