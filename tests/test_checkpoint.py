import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from mllmsubj import checkpoint
from mllmsubj.app.pipeline import TINY
from mllmsubj.errors import UserError
from mllmsubj.sharding import make_mesh

CONFIG = ConfigDict({"sizes": (8, 16), "prompt": {"system": "Sei knapp 🐈", "rate": 0.5}})


def tree(**shapes):
    shapes = {"kernel": (3, 3, 2, 16), "bias": (16,)} | shapes
    return {"vae": {"conv_in": {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items() if s}}}


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), tree())


@pytest.fixture
def folder(tmp_path, params):
    checkpoint.save(tmp_path / "run" / "checkpoint", CONFIG, params, TINY)
    return tmp_path / "run" / "checkpoint"


def test_what_is_saved_is_restored_in_shards(folder, params):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    restored = checkpoint.restore(folder, tree(), mesh)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert not restored["vae"]["conv_in"]["kernel"].is_fully_replicated
    assert checkpoint.read_config(folder).to_dict() == CONFIG.to_dict()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint"]
    for name in checkpoint.TOKENIZERS:
        assert (folder / name / "tokenizer.json").read_bytes() == (TINY / name / "tokenizer.json").read_bytes()


def test_parameters_are_cast_to_what_is_expected(folder, params):
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), tree())
    restored = checkpoint.restore(folder, half, make_mesh())
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), restored, params)


def test_a_checkpoint_is_never_overwritten(folder, params):
    with pytest.raises(UserError, match="exists already"):
        checkpoint.save(folder, CONFIG, params, TINY)
    assert checkpoint.read_config(folder).to_dict() == CONFIG.to_dict()


@pytest.mark.parametrize("wrong", ["tokenizers", "parent"])
def test_nothing_is_left_of_a_save_that_fails(tmp_path, params, wrong):
    (tmp_path / "file").touch()
    target = tmp_path / "new" if wrong == "tokenizers" else tmp_path / "file" / "new"
    with pytest.raises(UserError, match=r"cannot write .*new"):
        checkpoint.save(target, CONFIG, params, tmp_path / "nowhere" if wrong == "tokenizers" else TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (dict(kernel=(3, 3, 2, 32)), r"kernel is \(3, 3, 2, 16\), the config says \(3, 3, 2, 32\)"),
        (dict(kernel=(16, 3, 3, 2), bias=(9,)), r"kernel.*; .*bias is \(16,\)"),
        (dict(bias=None), "has unknown vae/conv_in/bias"),
        (dict(scale=(16,)), "lacks vae/conv_in/scale"),
        ({f"bias_{i}": (1,) for i in range(5)} | dict(bias=None), r"\(and 3 more\)"),
    ],
)
def test_other_parameters_are_named(folder, shapes, says):
    if "bias_0" in shapes:  # names that the table of shardings knows
        shapes = {f"layer_scale_{name}": shape for name, shape in shapes.items() if shape} | dict(bias=None)
    with pytest.raises(UserError, match=says) as error:
        checkpoint.restore(folder, tree(**shapes), make_mesh())
    assert "\n" not in str(error.value)


def parts(folder):
    return sorted(path for path in (folder / "params").rglob("*") if path.is_file())


def damaged(path, damage):
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
@pytest.mark.parametrize("which", ["largest", "_METADATA", "tokenizer.json"])
def test_damaged_files_are_named(folder, which, damage, capfd):
    path = max(parts(folder), key=lambda p: p.stat().st_size) if which == "largest" else next(folder.rglob(which))
    damaged(path, damage)
    with pytest.raises(UserError, match=rf"is damaged: .*{path.name} (is missing|has \d+ bytes of \d+)"):
        checkpoint.restore(folder, tree(), make_mesh())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damage_that_orbax_finds(folder, damage):
    (folder / "files.json").unlink()  # as in a checkpoint that another program wrote
    damaged(folder / "params" / "_METADATA", damage)
    with pytest.raises(UserError, match=r"cannot read the parameters in .*params") as error:
        checkpoint.restore(folder, tree(), make_mesh())
    assert "\n" not in str(error.value)


def test_what_orbax_says_is_cut_to_one_line(folder, monkeypatch):
    def restore(*_):
        raise Exception("many\nlines " * 999)

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", restore)
    with pytest.raises(UserError, match=r"cannot read the parameters in .*params: many lines") as error:
        checkpoint.restore(folder, tree(), make_mesh())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_parameters_that_are_gone(folder):
    (folder / "params").rename(folder / "elsewhere")
    assert not checkpoint.has_params(folder)
    with pytest.raises(UserError, match="has no params folder"):
        checkpoint.restore(folder, tree(), make_mesh())


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"nowhere' is no checkpoint.*config\.json"):
        checkpoint.read_config(tmp_path / "nowhere")


@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b"3", b'"x"', b"\xff\xfe", b'{"a.b": 1}', b"[" * 9999])
def test_damaged_configs_are_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.json is no config") as error:
        checkpoint.read_config(tmp_path)
    assert "\n" not in str(error.value)


def test_fingerprints_tell_checkpoints_apart(folder):
    first = checkpoint.fingerprint(folder)
    assert len(first) == 12
    assert int(first, 16) >= 0
    config = json.loads((folder / "config.json").read_text()) | {"sizes": [8, 17]}
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint.fingerprint(folder) != first
