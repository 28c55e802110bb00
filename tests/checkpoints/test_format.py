"""The checkpoint format: `save`, `restore`, base checkpoints, fingerprints and damaged files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.format import TINY
from mllmsubj.errors import UserError
from mllmsubj.parallel.sharding import make_mesh, sharded_shapes

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


def test_restore_sharded(folder, params):
    """Parameters, config and tokenizers are restored as they were saved."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    restored = checkpoint.restore(folder, sharded_shapes(tree(), mesh))
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert not restored["vae"]["conv_in"]["kernel"].is_fully_replicated
    assert checkpoint.read_config(folder).to_dict() == CONFIG.to_dict()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint"]
    for name in checkpoint.TOKENIZERS:
        assert (folder / name / "tokenizer.json").read_bytes() == (TINY / name / "tokenizer.json").read_bytes()


def test_restore_dtype_cast(folder, params):
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), tree())
    restored = checkpoint.restore(folder, sharded_shapes(half, make_mesh()))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), restored, params)


def test_save_existing_folder(folder, params):
    with pytest.raises(UserError, match="exists already"):
        checkpoint.save(folder, CONFIG, params, TINY)
    assert checkpoint.read_config(folder).to_dict() == CONFIG.to_dict()


def test_save_replace(folder, params):
    before = checkpoint.fingerprint(folder)
    (folder.parent / ".checkpoint.0123abcd.old").mkdir()  # a replacement that was killed half-way
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    checkpoint.save(folder, CONFIG, doubled, TINY, replace=True)
    jax.tree.map(
        np.testing.assert_array_equal, checkpoint.restore(folder, sharded_shapes(tree(), make_mesh())), doubled
    )
    assert checkpoint.fingerprint(folder) != before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_save_replace_other_folder(tmp_path, params):
    """A folder that is not a checkpoint is not replaced."""
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="photos exists already"):
        checkpoint.save(tmp_path / "photos", CONFIG, params, TINY, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_save_replace_failure(folder, params, tmp_path):
    """A failed replacement leaves the old checkpoint as it was."""
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.save(folder, CONFIG, params, tmp_path / "nowhere", replace=True)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.restore(folder, sharded_shapes(tree(), make_mesh())), params)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def trained(value: float) -> dict:
    return {"dla": {"layer_scale_x": jnp.full(16, value)}}


@pytest.fixture
def upper(folder, tmp_path):
    """A checkpoint of trained parameters only, on top of `folder`."""
    checkpoint.save(tmp_path / "upper", CONFIG, trained(3.0), TINY, base=folder)
    return tmp_path / "upper"


def whole(**shapes) -> dict:
    return tree(**shapes) | jax.eval_shape(lambda: trained(0.0))


def test_restore_base(upper, params):
    mesh = make_mesh(fsdp=8)
    restored = checkpoint.restore(upper, sharded_shapes(whole(), mesh))
    jax.tree.map(np.testing.assert_array_equal, restored, params | trained(3.0))
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(restored))


def test_restore_nested_bases(upper, params, tmp_path):
    """The parameters of a checkpoint replace those of its bases; unknown parameters are an error."""
    checkpoint.save(tmp_path / "top", CONFIG, trained(4.0), TINY, base=upper)
    restored = checkpoint.restore(tmp_path / "top", sharded_shapes(whole(), make_mesh()))
    jax.tree.map(np.testing.assert_array_equal, restored, params | trained(4.0))
    with pytest.raises(UserError, match="has unknown dla/layer_scale_x"):
        checkpoint.restore(tmp_path / "top", sharded_shapes(tree(), make_mesh()))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [(dict(layer_scale_y=(2,)), "lacks vae/conv_in/layer_scale_y"), (dict(bias=(8,)), r"bias is \(16,\)")],
)
def test_restore_base_mismatch(upper, shapes, says):
    """The error names parameters that the base lacks or has in other shapes."""
    with pytest.raises(UserError, match=rf"checkpoint .*upper does not fit its config: .*{says}"):
        checkpoint.restore(upper, sharded_shapes(whole(**shapes), make_mesh()))


@pytest.mark.parametrize("change", ["gone", "retrained", "damaged"])
def test_restore_base_changed(folder, upper, params, change):
    """A base that was moved, replaced or damaged is an error."""
    if change == "gone":
        folder.rename(folder.with_name("elsewhere"))
        says = rf"upper needs its base {folder} with fingerprint \w{{12}}, which is no longer there"
    elif change == "retrained":
        checkpoint.save(folder, CONFIG, jax.tree.map(jnp.negative, params), TINY, replace=True)
        says = rf"upper needs its base {folder} with .* has {checkpoint.fingerprint(folder)}"
    else:
        damaged(folder / "params" / "_METADATA", "cut")
        says = rf"checkpoint {folder} is damaged"
    with pytest.raises(UserError, match=says) as error:
        checkpoint.restore(upper, sharded_shapes(whole(), make_mesh()))
    assert "\n" not in str(error.value)


def test_fingerprint_base(folder, upper, tmp_path):
    """The fingerprint of a checkpoint depends on its base."""
    checkpoint.save(tmp_path / "same", CONFIG, trained(3.0), TINY, base=upper)
    said = [json.loads((path / "base.json").read_text()) for path in (upper, tmp_path / "same")]
    assert [each["fingerprint"] for each in said] == [checkpoint.fingerprint(path) for path in (folder, upper)]
    assert all("base.json" in json.loads((path / "files.json").read_text()) for path in (upper, tmp_path / "same"))
    assert len({checkpoint.fingerprint(path) for path in (folder, upper, tmp_path / "same")}) == 3


def test_save_shipped_base(tmp_path):
    """A shipped base is stored by name, not by path."""
    checkpoint.save(tmp_path / "upper", CONFIG, trained(3.0), TINY, base=TINY)
    assert json.loads((tmp_path / "upper" / "base.json").read_text())["checkpoint"] == "tiny"


def test_folder_of_workdir(folder, params, tmp_path):
    """The checkpoint of a workdir is its `model` folder, if there is one."""
    assert checkpoint.folder_of("tiny") == TINY
    assert checkpoint.folder_of(folder) == folder
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    (workdir / "config.json").write_text("{}")
    assert checkpoint.folder_of(workdir) == workdir
    checkpoint.save(workdir / "model", CONFIG, params, TINY)
    assert checkpoint.folder_of(str(workdir)) == workdir / "model"


@pytest.mark.parametrize("wrong", ["tokenizers", "parent"])
def test_save_failure(tmp_path, params, wrong):
    """A failed save leaves no files."""
    (tmp_path / "file").touch()
    target = tmp_path / "new" if wrong == "tokenizers" else tmp_path / "file" / "new"
    with pytest.raises(UserError, match=r"cannot write .*new"):
        checkpoint.save(target, CONFIG, params, tmp_path / "nowhere" if wrong == "tokenizers" else TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (dict(kernel=(3, 3, 2, 32)), r"kernel is \(3, 3, 2, 16\), the config says \(3, 3, 2, 32\)"),
        (dict(kernel=(16, 3, 3, 2), bias=(9,)), r"bias is \(16,\).*; .*kernel"),
        (dict(bias=None), "has unknown vae/conv_in/bias"),
        (dict(scale=(16,)), "lacks vae/conv_in/scale"),
        ({f"bias_{i}": (1,) for i in range(5)} | dict(bias=None), r"\(and 3 more\)"),
    ],
)
def test_restore_mismatch(folder, shapes, says):
    """The error names missing, unknown and wrongly shaped parameters in one line."""
    if "bias_0" in shapes:  # names that the sharding rules have
        shapes = {f"layer_scale_{name}": shape for name, shape in shapes.items() if shape} | dict(bias=None)
    with pytest.raises(UserError, match=says) as error:
        checkpoint.restore(folder, sharded_shapes(tree(**shapes), make_mesh()))
    assert "\n" not in str(error.value)


def parts(folder):
    return sorted(path for path in (folder / "params").rglob("*") if path.is_file())


def damaged(path, damage):
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
@pytest.mark.parametrize("which", ["largest", "_METADATA", "tokenizer.json"])
def test_restore_damaged_file(folder, which, damage, capfd):
    """The error names the file that is missing, truncated or empty."""
    path = max(parts(folder), key=lambda p: p.stat().st_size) if which == "largest" else next(folder.rglob(which))
    damaged(path, damage)
    with pytest.raises(UserError, match=rf"is damaged: .*{path.name} (is missing|has \d+ bytes of \d+)"):
        checkpoint.restore(folder, sharded_shapes(tree(), make_mesh()))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_restore_damaged_metadata(folder, damage):
    """Without files.json, the error of Orbax is reported in one line."""
    (folder / "files.json").unlink()  # as in a checkpoint that another program wrote
    damaged(folder / "params" / "_METADATA", damage)
    with pytest.raises(UserError, match=r"cannot read the parameters in .*params") as error:
        checkpoint.restore(folder, sharded_shapes(tree(), make_mesh()))
    assert "\n" not in str(error.value)


def test_restore_orbax_error_length(folder, monkeypatch):
    """A long error of Orbax is shortened to one line."""

    def restore(*_, **__):
        raise Exception("many\nlines " * 999)

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    with pytest.raises(UserError, match=r"cannot read the parameters in .*params: many lines") as error:
        checkpoint.restore(folder, sharded_shapes(tree(), make_mesh()))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_restore_missing_params(folder):
    (folder / "params").rename(folder / "elsewhere")
    with pytest.raises(UserError, match="has no params folder"):
        checkpoint.restore(folder, sharded_shapes(tree(), make_mesh()))


def test_read_config_missing(tmp_path):
    with pytest.raises(UserError, match=r"nowhere' is no checkpoint.*config\.json"):
        checkpoint.read_config(tmp_path / "nowhere")


@pytest.mark.parametrize("text", [b"", b"{", b"[1, 2]", b"3", b'"x"', b"\xff\xfe", b'{"a.b": 1}', b"[" * 9999])
def test_read_config_damaged(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.json is no config") as error:
        checkpoint.read_config(tmp_path)
    assert "\n" not in str(error.value)


def test_fingerprint_config(folder):
    """The fingerprint depends on the config."""
    first = checkpoint.fingerprint(folder)
    assert len(first) == 12
    assert int(first, 16) >= 0
    config = json.loads((folder / "config.json").read_text()) | {"sizes": [8, 17]}
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoint.fingerprint(folder) != first
