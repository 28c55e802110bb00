import json

import jax
import numpy as np
import pytest

from mllmsubj import convert
from mllmsubj.errors import UserError
from tests.models.test_mllm import VARIANTS, build


@pytest.fixture(scope="module", params=VARIANTS)
def saved(request, tmp_path_factory):
    """Returns the folder of a checkpoint, its config and its parameters."""
    from tests.parity import save

    folder = save(build(request.param), tmp_path_factory.mktemp("internvl"))
    return folder, *convert.load_mllm(folder)


def renamed(name):
    """Returns the module's own name of a tensor of the hub's files."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


@pytest.mark.parity
def test_load_mllm_module_names(saved, tmp_path):
    """Files may have the module's own names of tensors instead of the hub's."""
    from safetensors.numpy import load_file, save_file

    folder, config, params = saved
    tensors = load_file(folder / "model.safetensors")
    assert all(name.split(".")[0] in {"language_model", "vision_tower", "multi_modal_projector"} for name in tensors)
    save_file({renamed(name): tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    found, again = convert.load_mllm(tmp_path)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parity
def test_load_mllm_transformers_4_config(saved, tmp_path):
    """Such a config has rope_theta next to rope_scaling, and no tie_word_embeddings."""
    folder, config, _ = saved
    raw = json.loads((folder / "config.json").read_text())
    rope = raw["text_config"].pop("rope_parameters")
    raw["text_config"] |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    if rope["rope_type"] == "dynamic":
        raw["text_config"]["rope_scaling"] = {"type": "dynamic", "factor": 2.0}
    del raw["tie_word_embeddings"]
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert convert.load_mllm(tmp_path)[0] == config


@pytest.mark.parity
@pytest.mark.parametrize("saved", ["layer-norm-untied"], indirect=True)
@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "model_type", "internvl_chat"),
        (None, "vision_feature_layer", -2),
        (None, "vision_feature_select_strategy", "full"),
        (None, "downsample_ratio", 0.3),
        ("vision_config", "use_mask_token", True),
        ("vision_config", "image_size", [28, 56]),
        ("text_config", "use_sliding_window", True),
        ("text_config", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e6}),
        ("text_config", "rope_parameters", None),
        ("text_config", "hidden_size", None),
    ],
    ids=str,
)
def test_load_mllm_unsupported_config(saved, tmp_path, section, key, value):
    folder, *_ = saved
    raw = json.loads((folder / "config.json").read_text())
    (raw[section] if section else raw)[key] = value
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    name = {"rope_parameters": "rope_t"}.get(key, key)
    with pytest.raises(UserError, match=name):
        convert.load_mllm(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("saved", ["layer-norm-untied"], indirect=True)
def test_load_mllm_missing_head(saved, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder, *_ = saved
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"missing tensor 'language_model\.lm_head\.weight'"):
        convert.load_mllm(tmp_path)


def original_names(tensors):
    """Names and fuses the hub's tensors as OpenGVLab does, by the inverse of transformers' conversion."""
    renamed, qkv = {}, {}
    for name, tensor in tensors.items():
        if name.startswith("vision_tower."):
            for theirs, original in (
                ("vision_tower.encoder.layer.", "vision_model.encoder.layers."),
                ("vision_tower.", "vision_model."),
                ("cls_token", "class_embedding"),
                ("position_embeddings", "position_embedding"),
                ("patch_embeddings.projection", "patch_embedding"),
                ("lambda_", "ls"),
                ("attention.projection_layer", "attn.proj"),
                ("attention.", "attn."),
                ("layernorm_before", "norm1"),
                ("layernorm_after", "norm2"),
            ):
                name = name.replace(theirs, original)
        for theirs, original in (("layer_norm", "0"), ("linear_1", "1"), ("linear_2", "3")):
            name = name.replace(f"multi_modal_projector.{theirs}", f"mlp1.{original}")
        part = next((part for part in "qkv" if f"attn.{part}_proj" in name and "vision" in name), None)
        if part is None:
            renamed[name] = tensor
        else:
            qkv.setdefault(name.replace(f"{part}_proj", "qkv"), {})[part] = tensor
    return renamed | {name: np.concatenate([parts[part] for part in "qkv"]) for name, parts in qkv.items()}


def original_config(raw):
    vision, text = raw["vision_config"], raw["text_config"]
    rope = text.pop("rope_parameters")
    return {
        "model_type": "internvl_chat",
        "downsample_ratio": raw["downsample_ratio"],
        "force_image_size": vision["image_size"][0],
        "ps_version": "v2",
        "select_layer": -1,
        "llm_config": text | {"rope_theta": rope["rope_theta"], "rope_scaling": {"factor": 2.0, "type": "dynamic"}},
        "vision_config": {
            **{key: vision[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
            **{key: vision[key] for key in ("intermediate_size", "num_channels", "layer_norm_eps", "norm_type")},
            "image_size": vision["image_size"][0],
            "patch_size": vision["patch_size"][0],
            "hidden_act": "gelu",
            "qkv_bias": vision["attention_bias"],
            "qk_normalization": vision["use_qk_norm"],
            "initializer_factor": 0.1,
        },
    }


@pytest.fixture
def original(saved, tmp_path):
    """Returns a folder as OpenGVLab publishes it, its config.json, and the config and parameters to expect."""
    from safetensors.numpy import load_file, save_file

    folder, config, params = saved
    tensors = original_names(load_file(folder / "model.safetensors"))
    save_file(tensors, tmp_path / "model.safetensors")
    raw = original_config(json.loads((folder / "config.json").read_text()))
    raw["llm_config"]["tie_word_embeddings"] = config.tie_word_embeddings
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": config.image_token_id}))
    return tmp_path, raw, config, params


@pytest.mark.parity
def test_load_mllm_original(original):
    """OpenGVLab's folder gives the config and the parameters of the hub's."""
    folder, _, config, params = original
    found, again = convert.load_mllm(folder)
    assert found == config
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parity
@pytest.mark.parametrize("saved", ["layer-norm-untied"], indirect=True)
@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "ps_version", "v1"),
        (None, "select_layer", -4),
        (None, "force_image_size", 56),
        ("llm_config", "model_type", "internlm2"),
        ("llm_config", "vocab_size", 3),
        ("vision_config", "qkv_bias", None),
        ("vision_config", "norm_type", "batch_norm"),
    ],
    ids=str,
)
def test_load_mllm_original_unsupported_config(original, section, key, value):
    folder, raw, *_ = original
    (raw[section] if section else raw)[key] = value
    (folder / "config.json").write_text(json.dumps(raw))
    name = {"select_layer": "vision_feature_layer", "qkv_bias": "attention_bias"}.get(key, key)
    with pytest.raises(UserError, match=name):
        convert.load_mllm(folder)
