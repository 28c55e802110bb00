"""InternVL: a transformers folder (`InternVLForConditionalGeneration.save_pretrained`, -hf), or OpenGVLab's format."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mllmsubj.convert import internvl_original as original
from mllmsubj.convert.engine import Entry, Source, Table, TensorFiles, conv, linear, norm, read_config, repeat
from mllmsubj.convert.renames import renamed
from mllmsubj.errors import CheckpointError
from mllmsubj.models.layers import abstract_params
from mllmsubj.models.mllm import InternVL, InternVLConfig
from mllmsubj.models.qwen2 import Qwen2Config
from mllmsubj.models.vit import ViTConfig
from mllmsubj.typing import Params

HEAD = "language_model.lm_head.weight"

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("internvl",),
    "vision_feature_layer": (-1,),
    "vision_feature_select_strategy": ("default",),
    "projector_hidden_act": ("gelu",),
    "vision_config.hidden_act": ("gelu",),
    "vision_config.norm_type": ("layer_norm", "rms_norm"),
    "vision_config.use_mask_token": (False,),
    "vision_config.use_absolute_position_embeddings": (True,),
    "vision_config.use_mean_pooling": (True,),
    "text_config.model_type": ("qwen2",),
    "text_config.hidden_act": ("silu",),
    "text_config.use_sliding_window": (False,),
    "text_config.rope_type": ("default", "dynamic"),
}
"""Supported values of `config.json`; the first is the default of a key that the file lacks."""

RENAMED = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
"""Prefixes in files of the hub -> prefixes in files that use the names of the modules."""


def load_mllm(folder: str | Path) -> tuple[InternVLConfig, Params]:
    """Returns sizes and parameters (numpy, in the file's dtype); raises UserError for unsupported configs."""
    return open_mllm(folder).load()


def open_mllm(folder: str | Path) -> Source[InternVLConfig]:
    """Opens the files for `load_mllm` without reading tensors; the layout is detected from their names."""
    tensors, raw, where = TensorFiles(folder), read_config(folder), str(folder)
    if original.MARK in tensors:
        config = read_sizes(original.to_transformers_config(raw, Path(folder), where), where, has_head=HEAD in tensors)
        entries = renamed(table(config), original.renames(config.vision.hidden_size))
    else:
        rename = any(name.startswith("model.") for name in tensors)
        config = read_sizes(raw, where, has_head=(_rename(HEAD) if rename else HEAD) in tensors)
        entries = table(config)
        if rename:
            entries = [replace(entry, source=_rename(entry.source)) for entry in entries]
    return Source(config, tensors, entries, abstract_params(InternVL(config)), where)


def read_sizes(raw: Mapping[str, Any], where: str, has_head: bool) -> InternVLConfig:
    """Returns the config from a `config.json` of transformers 4 or 5; `has_head`: whether the files have a head."""
    vision, text = (dict(raw.get(name) or {}) for name in ("vision_config", "text_config"))
    # transformers 5 writes rope_parameters, 4 wrote rope_theta and an optional rope_scaling.
    rope = {"rope_theta": text.get("rope_theta")} | (text.get("rope_parameters") or text.get("rope_scaling") or {})
    text |= {"rope_theta": rope["rope_theta"], "rope_type": rope.get("rope_type", rope.get("type", "default"))}
    _check(dict(raw) | {"vision_config": vision, "text_config": text}, where)

    vision |= {key: _side(vision.get(key), f"vision_config.{key}", where) for key in ("image_size", "patch_size")}
    config = InternVLConfig(
        vision=ViTConfig(**_pick(ViTConfig, vision, "vision_config", where)),
        text=Qwen2Config(**_pick(Qwen2Config, text, "text_config", where)),
        # Older files lack the key whatever its value; files with a head are not tied.
        tie_word_embeddings=not has_head and raw.get("tie_word_embeddings", True),
        **{key: _need(raw, key, key, where) for key in ("image_token_id", "downsample_ratio")},
    )
    if abs(config.merge * config.downsample_ratio - 1) > 1e-6 or config.vision.grid % config.merge:
        raise CheckpointError(
            f"{where}: downsample_ratio {config.downsample_ratio} does not fit the {config.vision.grid} patches of a "
            "tile's side; 1 / downsample_ratio must be a whole number that divides them"
        )
    return config


def table(config: InternVLConfig) -> Table:
    """Returns an entry for every tensor of `InternVLForConditionalGeneration`, with its name on the hub."""
    vision, text = config.vision, config.text
    return [
        Entry("vision_tower.embeddings.cls_token", "vision/class_token"),
        Entry("vision_tower.embeddings.position_embeddings", "vision/position_embedding"),
        *conv("vision_tower.embeddings.patch_embeddings.projection", "vision/patch_embedding"),
        *repeat(
            vision.num_hidden_layers, "vision_tower.encoder.layer.{i}.", "vision/layers/", list(_vision_layer(vision))
        ),
        *norm("multi_modal_projector.layer_norm", "projector/layer_norm", bias=True),
        *linear("multi_modal_projector.linear_1", "projector/linear_1"),
        *linear("multi_modal_projector.linear_2", "projector/linear_2"),
        Entry("language_model.model.embed_tokens.weight", "text/embed_tokens/embedding"),
        *repeat(text.num_hidden_layers, "language_model.model.layers.{i}.", "text/layers/", list(_text_layer())),
        *norm("language_model.model.norm", "text/norm"),
        *([] if config.tie_word_embeddings else [Entry(HEAD, "lm_head/kernel", "linear")]),
    ]


def _vision_layer(config: ViTConfig) -> Iterable[Entry]:
    yield from norm("layernorm_before", "norm1", bias=config.norm_type == "layer_norm")
    yield from norm("layernorm_after", "norm2", bias=config.norm_type == "layer_norm")
    for part in "qkv":
        yield from linear(f"attention.{part}_proj", f"attn/{part}_proj", config.attention_bias)
    for part in "qk" if config.use_qk_norm else "":
        yield from norm(f"attention.{part}_norm", f"attn/{part}_norm")
    yield from linear("attention.projection_layer", "attn/proj")
    for name in ("fc1", "fc2"):
        yield from linear(f"mlp.{name}", f"mlp/{name}")
    for i in (1, 2):
        yield Entry(f"lambda_{i}", f"layer_scale_{i}")


def _text_layer() -> Iterable[Entry]:
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield from norm(name, name)
    for part in "qkvo":
        yield from linear(f"self_attn.{part}_proj", f"attn/{part}_proj", bias=part != "o")
    for part in ("gate", "up", "down"):
        yield from linear(f"mlp.{part}_proj", f"mlp/{part}_proj", bias=False)


def _rename(source: str) -> str:
    for hub, module in RENAMED:
        if source.startswith(hub):
            return module + source.removeprefix(hub)
    return source


def _check(raw: Mapping[str, Any], where: str) -> None:
    for key, values in SUPPORTED.items():
        *parents, name = key.split(".")
        section = raw[parents[0]] if parents else raw
        value = section.get(name, values[0])
        if value not in values:
            raise CheckpointError(f"{where}: {key} is {value!r}; supported: {', '.join(map(repr, values))}")


def _side(value: Any, key: str, where: str) -> Any:
    sides = {*value} if isinstance(value, list) else {value}
    if len(sides) > 1:
        raise CheckpointError(f"{where}: {key} is {value}; supported: a square")
    return sides.pop()


def _pick(kind: type, section: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    return {field.name: _need(section, field.name, f"{name}.{field.name}", where) for field in fields(kind)}


def _need(section: Mapping[str, Any], name: str, key: str, where: str) -> Any:
    if section.get(name) is None:
        raise CheckpointError(f"{where}: config.json has no {key}")
    return section[name]
