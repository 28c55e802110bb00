"""FLUX transformer: a diffusers folder (`FluxTransformer2DModel.save_pretrained`), or the original single file."""

from pathlib import Path

from mllmsubj.convert import flux_original as original
from mllmsubj.convert.engine import (
    Source,
    Table,
    TensorFiles,
    config_path,
    inside,
    linear,
    norm,
    read_config,
    repeat,
    sizes,
)
from mllmsubj.convert.renames import renamed
from mllmsubj.models.dit import FluxConfig, FluxTransformer
from mllmsubj.models.layers import abstract_params
from mllmsubj.typing import Params

CLASS = "FluxTransformer2DModel"


def load_transformer(path: str | Path) -> tuple[FluxConfig, Params]:
    """Returns sizes and parameters (numpy, in the file's dtype) of a FLUX transformer, from a folder or single file."""
    return open_transformer(path).load()


def open_transformer(path: str | Path) -> Source[FluxConfig]:
    """Opens the files for `load_transformer` without reading tensors; the layout is detected from their names."""
    tensors = TensorFiles(path)
    prefix = original.prefix(tensors)
    if prefix is None:
        config = sizes(FluxConfig, read_config(path))
        entries = table(config)
    else:
        # The config.json next to a single file may be another model's.
        has_config = config_path(path).is_file() and read_config(path).get("_class_name") == CLASS
        config = sizes(FluxConfig, read_config(path)) if has_config else original.read_sizes(tensors, prefix)
        entries = inside(prefix, "", renamed(table(config), original.renames(config)))
    return Source(config, tensors, entries, abstract_params(FluxTransformer(config)), str(path))


def table(config: FluxConfig) -> Table:
    """Returns an entry for every tensor of `FluxTransformer2DModel`."""
    embedders = ["text_embedder", "timestep_embedder", *["guidance_embedder"] * config.guidance_embeds]
    return [
        *linear("x_embedder", "x_embedder"),
        *linear("context_embedder", "context_embedder"),
        *(entry for name in embedders for entry in _two_layer(f"time_text_embed.{name}", f"time_text_embed/{name}")),
        *repeat(config.num_layers, "transformer_blocks.{i}.", "double_blocks/", _double_block()),
        *repeat(config.num_single_layers, "single_transformer_blocks.{i}.", "single_blocks/", _single_block()),
        *_modulation(config.num_layers, "transformer_blocks.{i}.norm1.linear", "double_img"),
        *_modulation(config.num_layers, "transformer_blocks.{i}.norm1_context.linear", "double_txt"),
        *_modulation(config.num_single_layers, "single_transformer_blocks.{i}.norm.linear", "single"),
        *linear("norm_out.linear", "modulation/out"),
        *linear("proj_out", "proj_out"),
    ]


def _modulation(layers: int, source: str, target: str) -> Table:
    return repeat(layers, source, f"modulation/{target}", linear("", ""), kernel_axis=1)


def _two_layer(source: str, target: str) -> Table:
    return [entry for name in ("linear_1", "linear_2") for entry in linear(f"{source}.{name}", f"{target}/{name}")]


def _double_block() -> Table:
    projections = ["to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    return [
        *(entry for name in projections for entry in linear(f"attn.{name}", f"attn/{name}")),
        *linear("attn.to_out.0", "attn/to_out"),
        *(
            entry
            for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
            for entry in norm(f"attn.{name}", f"attn/{name}")
        ),
        *linear("ff.net.0.proj", "ff/ff_in"),
        *linear("ff.net.2", "ff/ff_out"),
        *linear("ff_context.net.0.proj", "ff_context/ff_in"),
        *linear("ff_context.net.2", "ff_context/ff_out"),
    ]


def _single_block() -> Table:
    return [
        *(entry for name in ("to_q", "to_k", "to_v") for entry in linear(f"attn.{name}", name)),
        *(entry for name in ("norm_q", "norm_k") for entry in norm(f"attn.{name}", name)),
        *linear("proj_mlp", "proj_mlp"),
        *linear("proj_out", "proj_out"),
    ]
