"""`mllmsubj export`: from a trained checkpoint to files that diffusers and `convert` load; LoRAs for `generate`."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from mllmsubj import convert
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.card import model_card
from mllmsubj.checkpoints.format import TINY
from mllmsubj.cli import main
from mllmsubj.cli.generate import lora_of
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.convert.lora import FILE
from mllmsubj.errors import UserError
from mllmsubj.inference.pipeline import Pipeline
from mllmsubj.models.layers import unstack
from mllmsubj.models.lora import merge_lora
from mllmsubj.models.subject import is_trained
from mllmsubj.tree import flatten, unflatten
from tests.environment import ROOT
from tests.small import random_like, small_config, small_model


@pytest.fixture(scope="module")
def params():
    return random_like(small_model(lora=True).abstract_params())


@pytest.fixture(scope="module")
def workdir(params, tmp_path_factory):
    """A workdir whose model refers to a base checkpoint; the base's parameters are deleted."""
    folder, leaves = tmp_path_factory.mktemp("run"), flatten(params)
    frozen = unflatten({path: leaf for path, leaf in leaves.items() if not is_trained(path)})
    trained = unflatten({path: leaf for path, leaf in leaves.items() if is_trained(path)})
    checkpoint.save(folder / "base", small_config(), frozen, TINY)
    checkpoint.save(folder / "model", small_config(), trained, TINY, base=folder / "base")
    shutil.rmtree(folder / "base" / "params")
    (folder / "model" / "metrics.json").write_text(json.dumps({"identity_accuracy": 0.51234, "per_class": {"dog": 1}}))
    return folder


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "new" / "folder"
    main.run(["mllmsubj", "export", f"--checkpoint={workdir}", f"--output={output}"])
    return output


def test_export_files(exported):
    names = ["README.md", "dla.safetensors", "dla_config.json", "pytorch_lora_weights.safetensors"]
    assert sorted(path.name for path in exported.iterdir()) == names
    assert list(exported.parent.iterdir()) == [exported]


def test_export_relative_path(workdir, tmp_path, monkeypatch):
    monkeypatch.chdir(workdir.parent)
    main.run(["mllmsubj", "export", f"--checkpoint={workdir.name}", f"--output={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "dla.safetensors").is_file()


def test_export_dla_bit_exact(exported, params):
    config, found = convert.load_dla(exported)
    assert config == small_model().config.dla
    jax.tree.map(np.testing.assert_array_equal, found, params["dla"])


def test_export_lora_bit_exact(exported, params):
    """The scale, alpha 8 / rank 4, is a power of two; it is multiplied into `lora_b` without rounding."""
    model = small_model(lora=True).config
    lora, found = convert.load_lora(exported, model.transformer)
    assert (lora.rank, lora.scale, set(lora.targets)) == (4, 1.0, set(model.lora.targets))
    want = {path: leaf for path, leaf in flatten(params["transformer"]).items() if "/lora_" in path}
    for path, leaf in flatten(found).items():
        np.testing.assert_array_equal(leaf, want.pop(path) * (2.0 if path.endswith("lora_b") else 1.0))
    assert not want


def test_model_card_small(exported):
    text = (exported / "README.md").read_text()
    header = text.split("---")[1]
    assert "license: apache-2.0" in header
    assert "base_model" not in header  # no published sizes
    for word in ("rank 4, alpha 8", "| identity_accuracy | 0.5123 |", "load_lora_weights", "does not do", "load_dla"):
        assert word in text
    assert "per_class" not in text


def test_model_card_paper():
    """A model trained from FLUX.1-dev has the license of FLUX.1-dev; without guidance embedding it is Apache 2.0."""
    yaml = pytest.importorskip("yaml")
    experiment = Experiment.from_config(load_config(str(ROOT / "configs" / "paper.py")))
    text = model_card(experiment, {}, "0123456789ab")
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == ["black-forest-labs/FLUX.1-dev", "OpenGVLab/InternVL3-8B"]
    assert (header["license"], header["library_name"]) == ("other", "diffusers")
    assert header["license_name"] == "flux-1-dev-non-commercial-license"
    assert "rank 512, alpha 512" in text
    assert "Not measured yet" in text
    schnell = replace(experiment.model.transformer, guidance_embeds=False)
    experiment = replace(experiment, model=replace(experiment.model, transformer=schnell))
    assert yaml.safe_load(model_card(experiment, {}, "0").split("---")[1])["license"] == "apache-2.0"


@pytest.fixture
def bad(workdir, tmp_path, params):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    checkpoint.save(tmp_path / "imported", small_config(), {"vae": params["vae"]}, TINY)
    checkpoint.save(tmp_path / "part", small_config(), {"dla": params["dla"]}, TINY)
    config = small_config()
    with config.unlocked():
        config.model.lora.rank = 2
    shutil.copytree(workdir / "model", tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(checkpoint.config_text(config))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "output", "says"),
    [
        (None, "out", "no checkpoint"),
        ("part", None, "no output"),
        ("part", "there", "exists already"),
        ("nowhere", "out", "is no checkpoint"),
        ("imported", "out", "is not trained yet"),
        ("part", "out", "does not fit its config: lacks transformer/"),
        ("other", "out", r"lora_a is \(2, 16, 4\), the config says \(2, 16, 2\)"),
        ("part", "file/out", "lacks|cannot write"),
    ],
)
def test_export_invalid_arguments(bad, source, output, says):
    """The error comes before any file is written."""
    given = {"checkpoint": source and bad / source, "output": output and bad / output}
    before = sorted(path.name for path in bad.iterdir())
    with pytest.raises(UserError, match=says):
        main.run(["mllmsubj", "export", *(f"--{name}={value}" for name, value in given.items() if value)])
    assert sorted(path.name for path in bad.iterdir()) == before


def test_export_disk_full(workdir, tmp_path, monkeypatch):
    """A failed export leaves no files."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "save_lora", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        main.run(["mllmsubj", "export", f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "name", "weight"), [("a", "a", 1.0), ("a:0.5", "a", 0.5), ("b:-1", "b:-1", 1.0)])
def test_lora_flag(tmp_path, text, name, weight):
    for file in ("a", "b:-1"):
        (tmp_path / file).touch()
    assert lora_of(f"{tmp_path}/{text}") == (tmp_path / name, weight)


@pytest.mark.parametrize(
    ("text", "says"),
    [("c", "does not exist"), ("c:0.5", "c' does not exist"), ("a:x", "'x' is not a weight"), ("a:nan", "finite")],
)
def test_lora_flag_invalid(tmp_path, text, says):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=says):
        lora_of(f"{tmp_path}/{text}")


def test_pipeline_merge_loras(params, exported, tmp_path):
    """LoRAs are merged on top of the checkpoint's adapters, before layers are unstacked, and are listed in `loras`."""
    checkpoint.save(tmp_path / "whole", small_config(), params, TINY)
    plain = Pipeline.load(tmp_path / "whole")
    pipe = Pipeline.load(tmp_path / "whole", loras=[(exported, 0.5), (exported / FILE, -2.0)])
    assert pipe.loras == [["folder", 0.5], [FILE, -2.0]]
    model = small_model(lora=True).config
    merged = merge_lora(params["transformer"], replace(model.lora, alpha=model.lora.alpha * (1 + 0.5 - 2.0)))
    found, without = flatten(pipe.params["transformer"]), flatten(plain.params["transformer"])
    for path, leaf in flatten(unstack(merged)).items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-5)
    path = "single_blocks/0/to_q/kernel"
    assert np.abs(found[path] - without[path]).max() > 0.1


def test_pipeline_lora_mismatch(params, exported, tmp_path):
    checkpoint.save(tmp_path / "whole", small_config(), params, TINY)
    config = small_config()
    with config.unlocked():
        config.model.transformer.num_single_layers = 1
    with pytest.raises(
        UserError, match=r"match no projection of a FLUX transformer of these sizes: transformer\.single"
    ):
        Pipeline.load(tmp_path / "whole", config, loras=[(exported, 1.0)])
