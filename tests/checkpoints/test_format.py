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


def test_what_is_saved_is_restored_in_shards(folder, params):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    restored = checkpoint.restore(folder, sharded_shapes(tree(), mesh))
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert not restored["vae"]["conv_in"]["kernel"].is_fully_replicated
    assert checkpoint.read_config(folder).to_dict() == CONFIG.to_dict()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint"]
    for name in checkpoint.TOKENIZERS:
        assert (folder / name / "tokenizer.json").read_bytes() == (TINY / name / "tokenizer.json").read_bytes()


def test_parameters_are_cast_to_what_is_expected(folder, params):
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), tree())
    restored = checkpoint.restore(folder, sharded_shapes(half, make_mesh()))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), restored, params)


def test_a_checkpoint_is_never_overwritten(folder, params):
    with pytest.raises(UserError, match="exists already"):
        checkpoint.save(folder, CONFIG, params, TINY)
    assert checkpoint.read_config(folder).to_dict() == CONFIG.to_dict()


def test_a_checkpoint_may_be_replaced(folder, params):
    before = checkpoint.fingerprint(folder)
    (folder.parent / ".checkpoint.0123abcd.old").mkdir()  # a replacement that was killed half-way
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    checkpoint.save(folder, CONFIG, doubled, TINY, replace=True)
    jax.tree.map(
        np.testing.assert_array_equal, checkpoint.restore(folder, sharded_shapes(tree(), make_mesh())), doubled
    )
    assert checkpoint.fingerprint(folder) != before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_only_a_checkpoint_is_replaced(tmp_path, params):
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="photos exists already"):
        checkpoint.save(tmp_path / "photos", CONFIG, params, TINY, replace=True)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_replacement_that_fails_changes_nothing(folder, params, tmp_path):
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


def test_parameters_of_the_base(upper, params):
    mesh = make_mesh(fsdp=8)
    restored = checkpoint.restore(upper, sharded_shapes(whole(), mesh))
    jax.tree.map(np.testing.assert_array_equal, restored, params | trained(3.0))
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(restored))


def test_bases_of_bases_and_what_they_trained(upper, params, tmp_path):
    checkpoint.save(tmp_path / "top", CONFIG, trained(4.0), TINY, base=upper)
    restored = checkpoint.restore(tmp_path / "top", sharded_shapes(whole(), make_mesh()))
    jax.tree.map(np.testing.assert_array_equal, restored, params | trained(4.0))
    with pytest.raises(UserError, match="has unknown dla/layer_scale_x"):
        checkpoint.restore(tmp_path / "top", sharded_shapes(tree(), make_mesh()))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [(dict(layer_scale_y=(2,)), "lacks vae/conv_in/layer_scale_y"), (dict(bias=(8,)), r"bias is \(16,\)")],
)
def test_what_a_base_cannot_give(upper, shapes, says):
    with pytest.raises(UserError, match=rf"checkpoint .*upper does not fit its config: .*{says}"):
        checkpoint.restore(upper, sharded_shapes(whole(**shapes), make_mesh()))


@pytest.mark.parametrize("change", ["gone", "retrained", "damaged"])
def test_a_base_must_stay_as_it_is(folder, upper, params, change):
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


def test_fingerprints_tell_bases_apart(folder, upper, tmp_path):
    checkpoint.save(tmp_path / "same", CONFIG, trained(3.0), TINY, base=upper)
    said = [json.loads((path / "base.json").read_text()) for path in (upper, tmp_path / "same")]
    assert [each["fingerprint"] for each in said] == [checkpoint.fingerprint(path) for path in (folder, upper)]
    assert all("base.json" in json.loads((path / "files.json").read_text()) for path in (upper, tmp_path / "same"))
    assert len({checkpoint.fingerprint(path) for path in (folder, upper, tmp_path / "same")}) == 3


def test_the_shipped_base_is_no_path(tmp_path):
    checkpoint.save(tmp_path / "upper", CONFIG, trained(3.0), TINY, base=TINY)
    assert json.loads((tmp_path / "upper" / "base.json").read_text())["checkpoint"] == "tiny"


def test_a_workdir_is_its_model(folder, params, tmp_path):
    assert checkpoint.folder_of("tiny") == TINY
    assert checkpoint.folder_of(folder) == folder
    workdir = tmp_path / "workdir"
    workdir.mkdir()
    (workdir / "config.json").write_text("{}")
    assert checkpoint.folder_of(workdir) == workdir
    checkpoint.save(workdir / "model", CONFIG, params, TINY)
    assert checkpoint.folder_of(str(workdir)) == workdir / "model"


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
        checkpoint.restore(folder, sharded_shapes(tree(**shapes), make_mesh()))
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
        checkpoint.restore(folder, sharded_shapes(tree(), make_mesh()))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damage_that_orbax_finds(folder, damage):
    (folder / "files.json").unlink()  # as in a checkpoint that another program wrote
    damaged(folder / "params" / "_METADATA", damage)
    with pytest.raises(UserError, match=r"cannot read the parameters in .*params") as error:
        checkpoint.restore(folder, sharded_shapes(tree(), make_mesh()))
    assert "\n" not in str(error.value)


def test_what_orbax_says_is_cut_to_one_line(folder, monkeypatch):
    def restore(*_, **__):
        raise Exception("many\nlines " * 999)

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    with pytest.raises(UserError, match=r"cannot read the parameters in .*params: many lines") as error:
        checkpoint.restore(folder, sharded_shapes(tree(), make_mesh()))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_parameters_that_are_gone(folder):
    (folder / "params").rename(folder / "elsewhere")
    with pytest.raises(UserError, match="has no params folder"):
        checkpoint.restore(folder, sharded_shapes(tree(), make_mesh()))


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
