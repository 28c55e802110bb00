from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest

from mllmsubj.checkpoints.format import RENAMED, TINY, config_text, read_config
from mllmsubj.config.load import load_config, typed
from mllmsubj.config.schema import Experiment, default_config
from mllmsubj.config.train import TrainConfig
from mllmsubj.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


def changed(changes):
    """Returns the shipped config with the values of dotted keys replaced or added."""
    config = read_config(TINY)
    for key, value in changes.items():
        *path, name = key.split(".")
        reduce(getattr, path, config)[name] = value
    return config


def test_shipped_config():
    """The shipped config.json is that of configs/tiny.py."""
    assert (TINY / "config.json").read_text() == config_text(load_config(str(CONFIGS / "tiny.py")))


def test_config_round_trip(tmp_path):
    config = load_config(str(CONFIGS / "tiny.py"))
    assert read_config(TINY).to_dict() == config.to_dict()
    assert Experiment.from_config(read_config(TINY)) == Experiment.from_config(config)


@pytest.mark.parametrize("name", ["tiny", "paper"])
@pytest.mark.parametrize("form", ["{name}", "configs/{name}.py", "{folder}/{name}.py"])
def test_load_config_name_and_file(name, form, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config(form.format(name=name, folder=CONFIGS))
    experiment = Experiment.from_config(config)
    assert experiment.model.dla.num_states == experiment.model.mllm.text.num_hidden_layers + 1
    assert experiment.sampling.tau1 == {"tiny": 0.83, "paper": 0.95}[name]
    assert experiment.model.vae.block_out_channels == config.model.vae.block_out_channels
    with pytest.raises((KeyError, AttributeError)):
        config.sampling.stepz = 3  # locked: a mistyped key is an error in a config file too


def test_load_config_own_file_before_shipped(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("from ml_collections import ConfigDict\ndef get_config(v=''): return ConfigDict()\n")
    assert load_config("tiny").to_dict() == {}


@pytest.mark.parametrize("name", ["/paper.py", "other/tiny.py", "sweeps/tau.py"])
def test_load_config_other_folder(name, monkeypatch, tmp_path):
    """A path to another folder is never read as the name of a shipped config."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        load_config(name)


def test_load_config_unknown_name():
    with pytest.raises(UserError, match=r"'papre' is not there \(did you mean 'paper'\?\); .*: paper, tiny"):
        load_config("papre")


def test_default_config_matches_schema():
    """Each default has the type of the schema; only the model's sizes have no default."""
    config = default_config()
    with pytest.raises(UserError, match=r"missing config key config\.model\.mllm"):
        Experiment.from_config(config)
    config.model = load_config("paper").model
    assert Experiment.from_config(config) == Experiment(model=Experiment.from_config(load_config("paper")).model)


def test_from_config_missing_key_default():
    """A missing key has its default."""
    config = load_config("tiny").unlock()
    del config.train.clip_norm
    assert Experiment.from_config(config).train.clip_norm == TrainConfig.clip_norm == 1.0


def test_read_config_version_0_1(tmp_path):
    """Checkpoints from before keys were renamed can be read."""
    text = (TINY / "config.json").read_text()
    for name, renamed in RENAMED.items():
        assert f'"{renamed}"' in text
        text = text.replace(f'"{renamed}"', f'"{name}"')
    (tmp_path / "config.json").write_text(text)
    assert read_config(tmp_path).to_dict() == read_config(TINY).to_dict()


def test_load_config_variant(tmp_path):
    """The text after the colon is the argument of `get_config`."""
    file = tmp_path / "own.py"
    file.write_text("from ml_collections import ConfigDict\ndef get_config(v=''): return ConfigDict(dict(name=v))\n")
    assert load_config(f"{file}:large").name == "large"
    assert load_config(str(file)).name == ""


def test_tiny_config_full_variant():
    """The variant `full` drops captions more rarely and trains on larger times; an unknown variant is an error."""
    first, then = (load_config(f"configs/tiny.py{variant}") for variant in (":full", ""))
    for key in ("drop_scene", "drop_subject", "drop_all"):
        assert first.pretrain.dit[key] < then.pretrain.dit[key]
    assert first.train.time.mean > then.train.time.mean
    with pytest.raises(UserError, match="unknown variant 'half'; known: full"):
        load_config("configs/tiny.py:half")


def test_tiny_config_short_variant():
    """The variant `short` has the same model with fewer steps."""
    short, whole = (load_config(f"configs/tiny.py{variant}") for variant in (":short", ""))
    Experiment.from_config(short)
    for stage, steps in (("stage1", 80), ("stage2", 200)):
        assert short.train[stage].steps == steps < whole.train[stage].steps
        assert short.train[stage].modes == whole.train[stage].modes
    for section in ("model", "sampling", "prompt", "reference"):
        assert short[section] == whole[section]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError.*nowhere_at_all"),
        ("def get_config(variant):\n    return 1 +", "SyntaxError"),
        ("x = 1", "get_config"),
        ("def get_config(variant):\n    return undefined", "NameError.*undefined"),
        ("def get_config(variant):\n    return 1 / 0", "ZeroDivisionError"),
        ("def get_config(variant):\n    raise ValueError", "ValueError"),
        ("def get_config(variant):\n    return {'a': 1}", "AttributeError"),
    ],
)
def test_load_config_failing_file(tmp_path, text, says):
    """The error names the file and the exception, in one line."""
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"broken\.py.*{says}") as error:
        load_config(str(file))
    assert "\n" not in str(error.value)


def test_load_config_missing_file():
    with pytest.raises(UserError, match=r"'nowhere\.py' is not there"):
        load_config("nowhere.py:large")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("sampling.stepz", 3, r"unknown config key config\.sampling\.stepz \(did you mean 'steps'\?\)"),
        ("modell", 3, r"unknown config key config\.modell \(did you mean 'model'\?\)"),
        ("model.vae.zzz", 3, r"unknown config key config\.model\.vae\.zzz$"),
    ],
)
def test_from_config_unknown_keys(key, value, says):
    with pytest.raises(UserError, match=says):
        Experiment.from_config(changed({key: value}))


@pytest.mark.parametrize("key", ["model", "model.clip", "model.clip.hidden_size"])
def test_from_config_missing_keys(key):
    config = read_config(TINY)
    *path, name = key.split(".")
    del reduce(getattr, path, config)[name]
    with pytest.raises(UserError, match=rf"missing config key config\.{key}$"):
        Experiment.from_config(config)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", 0.5, "int"),
        ("seed", True, "int"),
        ("sampling.tau1", "0.9", "float"),
        ("model.mllm.tie_word_embeddings", 1, "bool"),
        ("compute.attention", "flash", "'auto' or"),
        ("sampling.last_stage", "keep", "'drop_all' or 'keep_text'"),
        ("prompt.pooled", "promt", "'prompt' or 'empty'"),
        ("prompt.system", None, "str"),
        ("reference.mean", 0.5, "tuple"),
    ],
)
def test_typed_wrong_types(key, value, expected):
    config = read_config(TINY).to_dict()
    *path, name = key.split(".")
    reduce(getitem, path, config)[name] = value
    with pytest.raises(UserError, match=rf"config key config\.{key} is {value!r}; expected .*{expected}"):
        typed(Experiment, config, "config")


def test_typed_tuple_items():
    """The types of items of tuples are checked."""
    config = read_config(TINY).to_dict()
    config["model"]["vae"]["block_out_channels"] = (32, 64, "64", 64)
    with pytest.raises(UserError, match=r"block_out_channels\[2\] is '64'; expected int"):
        typed(Experiment, config, "config")


def test_typed_number_conversion():
    """Integers and NumPy's numbers are converted to the float or int of the schema."""
    config = read_config(TINY).to_dict()
    config["sampling"] |= dict(guidance=3, tau1=np.linspace(0, 1, 3)[1], tau2=np.float32(0.25), steps=np.int64(4))
    sampling = typed(Experiment, config, "config").sampling
    assert (sampling.guidance, sampling.tau1, sampling.tau2, sampling.steps) == (3.0, 0.5, 0.25, 4)
    assert [type(x) for x in (sampling.guidance, sampling.tau1, sampling.steps)] == [float, float, int]


def test_typed_lora_none():
    """A model may have no adapters."""
    config = read_config(TINY).to_dict()
    config["model"]["lora"] = None
    assert typed(Experiment, config, "config").model.lora is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dla.num_states", 8),
        ("dla.input_dim", 64),
        ("dla.context_dim", 64),
        ("transformer.in_channels", 60),
        ("transformer.pooled_projection_dim", 32),
        ("transformer.attention_head_dim", 64),
    ],
)
def test_from_config_mismatched_sizes(key, value):
    with pytest.raises(UserError, match=rf"model\.{key} is {value} but .* is \d+; make them equal"):
        Experiment.from_config(changed({f"model.{key}": value}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(height=100), "height is 100; .*multiple of 16.*such as 96"),
        (dict(width=0), "width is 0.*such as 16"),
        (dict(width=8192), "width is 8192; .*4096"),
        (dict(steps=0), "steps is 0.*1 to 1000"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(guidance=float("inf")), "guidance is inf"),
        (dict(text_guidance=-1.0), "text_guidance is -1"),
        (dict(tau1=0.5, tau2=0.6), "tau1=0.5, tau2=0.6.*tau2 <= tau1"),
        (dict(tau1=float("nan")), "tau1=nan"),
        (dict(tau1=1.5), "tau1=1.5"),
    ],
)
def test_from_config_invalid_sampling(changes, says):
    with pytest.raises(UserError, match=says):
        Experiment.from_config(changed({f"sampling.{name}": value for name, value in changes.items()}))
