"""InternVL as published by OpenGVLab (OpenGVLab/InternVL3-8B, not -hf): its config and its names.

Names and config keys are from OpenGVLab/InternVL `internvl_chat/internvl/model/internvl_chat/`, their mapping to
transformers from its `convert_internvl_weights_to_hf.py`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mllmsubj.convert.renames import Rename, fused
from mllmsubj.errors import CheckpointError

MARK = "mlp1.0.weight"
"""Tensor that identifies the layout."""
IMAGE_TOKEN, IMAGE_TOKEN_ID = "<IMG_CONTEXT>", 151_667
"""Token that visual features replace, and its id in the Qwen2 tokenizers of InternVL3."""
LAYER_SCALE = 0.1
"""Initial value of a layer's scales if nothing is loaded, as in the -hf configs."""

SUPPORTED = {"model_type": "internvl_chat", "ps_version": "v2"}
"""Supported values of keys that the -hf config lacks or has another value for."""


def to_transformers_config(raw: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Converts an original `config.json` to that of transformers; raises UserError for unsupported values."""
    for key, value in SUPPORTED.items():
        if raw.get(key) != value:
            raise CheckpointError(f"{where}: {key} is {raw.get(key)!r}; supported: {value!r}")
    vision, text = dict(raw["vision_config"]), dict(raw["llm_config"])
    size = raw.get("force_image_size") or vision.get("image_size")
    if size != vision.get("image_size"):
        raise CheckpointError(
            f"{where}: force_image_size is {size} and vision_config.image_size {vision.get('image_size')}; supported: "
            "equal ones, position embeddings are not interpolated"
        )
    vision |= {"attention_bias": vision.get("qkv_bias"), "use_qk_norm": vision.get("qk_normalization")}
    return {
        "model_type": "internvl",
        "vision_config": vision | {"layer_scale_init_value": LAYER_SCALE},
        "text_config": text,
        "vision_feature_layer": raw.get("select_layer", -1),
        "downsample_ratio": raw.get("downsample_ratio"),
        "image_token_id": _image_token_id(folder, text.get("vocab_size"), where),
        "tie_word_embeddings": text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False)),
    }


def _image_token_id(folder: Path, vocabulary: Any, where: str) -> int:
    """Returns the id from the folder's `added_tokens.json` if it exists, else `IMAGE_TOKEN_ID`."""
    path = folder / "added_tokens.json"
    try:
        token = json.loads(path.read_text()).get(IMAGE_TOKEN) if path.is_file() else IMAGE_TOKEN_ID
    except (AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a valid token list: {error}") from error
    if not isinstance(token, int) or not isinstance(vocabulary, int) or token >= vocabulary:
        raise CheckpointError(
            f"{where}: the id of {IMAGE_TOKEN} is {token}, vocab_size is {vocabulary}; it must be below"
        )
    return token


def renames(width: int) -> Iterable[Rename]:
    """Returns the renames from the names on the hub to the original ones; `width` is that of the vision tower."""
    layer = r"^vision_tower\.encoder\.layer\.(\d+)\."
    into = r"vision_model.encoder.layers.\1."
    return [
        Rename(r"^vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
        Rename(r"^vision_tower\.embeddings\.position_embeddings", "vision_model.embeddings.position_embedding"),
        Rename(r"^vision_tower\.embeddings\.patch_embeddings\.projection", "vision_model.embeddings.patch_embedding"),
        *fused([rf"{layer}attention\.{part}_proj(?=\.)" for part in "qkv"], f"{into}attn.qkv", [width] * 3),
        Rename(rf"{layer}attention\.([qk])_norm", rf"{into}attn.\2_norm"),
        Rename(rf"{layer}attention\.projection_layer", f"{into}attn.proj"),
        Rename(rf"{layer}layernorm_before", f"{into}norm1"),
        Rename(rf"{layer}layernorm_after", f"{into}norm2"),
        Rename(rf"{layer}lambda_", f"{into}ls"),
        Rename(rf"{layer}mlp", f"{into}mlp"),
        Rename(r"^multi_modal_projector\.layer_norm", "mlp1.0"),
        Rename(r"^multi_modal_projector\.linear_1", "mlp1.1"),
        Rename(r"^multi_modal_projector\.linear_2", "mlp1.3"),
    ]
