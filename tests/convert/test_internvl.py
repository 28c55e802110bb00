import json

import jax
import numpy as np
import pytest

from mllmsubj import convert
from mllmsubj.errors import UserError
from tests.models.test_mllm import VARIANTS, build


@pytest.fixture(scope="module", params=VARIANTS)
def saved(request, tmp_path_factory):
    """A folder, its config and its parameters."""
    from tests.parity import save

    folder = save(build(request.param), tmp_path_factory.mktemp("internvl"))
    return folder, *convert.load_mllm(folder)


def renamed(name):
    """The name that the module itself has for a tensor of the hub's files."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


@pytest.mark.parity
def test_either_naming(saved, tmp_path):
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
def test_config_of_transformers_4(saved, tmp_path):
    """rope_theta beside rope_scaling, and no tie_word_embeddings."""
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
def test_unsupported(saved, tmp_path, section, key, value):
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
def test_missing_head_is_named(saved, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder, *_ = saved
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"missing tensor 'language_model\.lm_head\.weight'"):
        convert.load_mllm(tmp_path)
