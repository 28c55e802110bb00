"""CLIP text encoder in a transformers folder (`CLIPTextModel.save_pretrained`)."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from mllmsubj.convert.engine import Entry, Source, Table, TensorFiles, inside, linear, norm, read_config, repeat, sizes
from mllmsubj.errors import CheckpointError
from mllmsubj.models.clip import ACTIVATIONS, CLIPTextConfig, CLIPTextModel
from mllmsubj.models.layers import abstract_params
from mllmsubj.typing import Params

PREFIX = "text_model."
"""Prefix of every name in files from transformers before version 5."""
IGNORED = "embeddings.position_ids"
"""Constant tensor saved by older versions of transformers."""


def load_clip_text(folder: str | Path) -> tuple[CLIPTextConfig, Params]:
    """Returns sizes and parameters (numpy, in the file's dtype) of a CLIP text encoder.

    Raises UserError for a config of another model, an unknown activation, or several end tokens.
    """
    return open_clip_text(folder).load()


def open_clip_text(folder: str | Path) -> Source[CLIPTextConfig]:
    """Opens the files for `load_clip_text` without reading tensors."""
    raw = read_config(folder)
    for key, value, wanted in _refused(raw):
        raise CheckpointError(
            f"{folder}/config.json: {key} is {value!r}, not {wanted}; give the text_encoder folder of a FLUX model"
        )
    config = sizes(CLIPTextConfig, raw)
    tensors = TensorFiles(folder)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    expected = abstract_params(CLIPTextModel(config))
    entries = inside(prefix, "", table(config))
    return Source(config, tensors, entries, expected, str(folder), ignored={prefix + IGNORED})


def _refused(raw: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    if raw.get("model_type") != "clip_text_model":
        yield "model_type", raw.get("model_type"), "'clip_text_model'"
    for field in fields(CLIPTextConfig):
        if raw.get(field.name) is None:
            yield field.name, None, "set"
    if raw["hidden_act"] not in ACTIVATIONS:
        yield "hidden_act", raw["hidden_act"], " or ".join(map(repr, ACTIVATIONS))
    if not isinstance(raw["eos_token_id"], int):
        yield "eos_token_id", raw["eos_token_id"], "one id"


def table(config: CLIPTextConfig) -> Table:
    """Returns an entry for every tensor of `CLIPTextModel`."""
    return [
        Entry("embeddings.token_embedding.weight", "token_embedding/embedding"),
        Entry("embeddings.position_embedding.weight", "position_embedding"),
        *repeat(config.num_hidden_layers, "encoder.layers.{i}.", "layers/", _layer()),
        *norm("final_layer_norm", "final_layer_norm", bias=True),
    ]


def _layer() -> Table:
    return [
        *norm("layer_norm1", "layer_norm1", bias=True),
        *(
            entry
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
            for entry in linear(f"self_attn.{name}", f"self_attn/{name}")
        ),
        *norm("layer_norm2", "layer_norm2", bias=True),
        *(entry for name in ("fc1", "fc2") for entry in linear(f"mlp.{name}", f"mlp/{name}")),
    ]
