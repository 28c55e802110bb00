"""Initial parameters: shipped components of the tiny model, and random values for the others."""

import jax
import numpy as np
import pytest

from mllmsubj.checkpoints import components, initial
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.initial import (
    FROZEN,
    WARM_STARTED,
    load_params,
    random_params,
    tiny_params,
    trained_params,
    untrained_components,
)
from mllmsubj.errors import UserError
from mllmsubj.models.subject import SubjectModel, is_trained
from mllmsubj.parallel.sharding import make_mesh, parameter_shardings
from mllmsubj.tree import flatten, split, unflatten
from tests.small import small_model


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Shipped weights for the small model: a VAE, and a table that the model does not have."""
    monkeypatch.setattr(checkpoint, "TINY", tmp_path)
    vae = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.1, np.float32), small_model(lora=True).abstract_params()["vae"]
    )
    components.write(tmp_path, "vae", {"vae": vae, "captions": {"embedding": np.ones((3, 2))}}, {"seed": 3})
    return tmp_path


@pytest.fixture(scope="module")
def mesh():
    """One device: a program that initializes a model compiles for a long time on several."""
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def random(mesh):
    """Random parameters of CLIP and the DLA of the small model, by path."""
    model = small_model(lora=True)
    only = {path for path in flatten(model.abstract_params()) if path.startswith(("clip/", "dla/"))}
    return flatten(random_params(model, split(model.abstract_params(mesh), only)[0], 0))


def ship(folder, part, begins, value):
    """Writes a component of the small model, without adapters; returns its paths.

    Components that are not shipped are initialized, which takes most of the time of these tests.
    """
    leaves = flatten(small_model(lora=True).abstract_params()).items()
    found = {p: np.full(leaf.shape, value) for p, leaf in leaves if p.startswith(begins) and "/lora_" not in p}
    components.write(folder, part, unflatten(found), {})
    return found.keys()


def test_tiny_params_shipped(tiny, mesh, random):
    """Shipped components replace random parameters; the others equal `random_params`."""
    model = small_model(lora=True)
    there = ship(tiny, "mllm", "mllm/", 0.1) | ship(tiny, "dit", "transformer/", 0.1)
    found = flatten(tiny_params(model, model.abstract_params(mesh), 0))
    assert {path: leaf.dtype for path, leaf in found.items()} == {
        path: leaf.dtype for path, leaf in flatten(model.abstract_params()).items()
    }
    for path, leaf in found.items():
        if path in there or path.startswith("vae/"):
            np.testing.assert_array_equal(leaf, np.float32(np.float16(0.1)))
    for path, leaf in random.items():
        np.testing.assert_array_equal(found[path], leaf)
        assert (found[path].dtype, found[path].sharding) == (leaf.dtype, leaf.sharding)
    assert components.provenance(tiny, "vae") == {"seed": 3}


def test_trained_params_untrained_warning(tiny, mesh):
    """The warning names the components that are random."""
    assert untrained_components(tiny) == ("mllm", "clip", "transformer", "dla")
    assert untrained_components(tiny / "other") == ()
    ship(tiny, "mllm", "mllm/", 0.1)
    with pytest.warns(UserWarning, match="'tiny' has no trained weights yet for clip, transformer, dla: these"):
        drawn = trained_params(tiny, small_model(lora=True), small_model(lora=True).abstract_params(mesh), 0)
    np.testing.assert_array_equal(drawn["vae"]["decoder"]["conv_in"]["bias"], np.float32(np.float16(0.1)))


def test_trained_params_subject(tiny, mesh, random):
    """`trained_params` has the shipped DLA and adapters; `tiny_params`, from which training starts, has not."""
    model = small_model(lora=True)
    leaves = {path: np.full(leaf.shape, 0.25) for path, leaf in flatten(model.abstract_params()).items()}
    trained = {path: leaf for path, leaf in leaves.items() if is_trained(path)}
    ship(tiny, "mllm", "mllm/", 0.1)
    frozen = {p: leaf for p, leaf in leaves.items() if p.startswith("transformer/") and p not in trained}
    components.write(tiny, "dit", unflatten(frozen), {})
    components.write(tiny, components.SUBJECT, unflatten(trained), {})
    assert untrained_components(tiny) == ("clip",)
    with pytest.warns(UserWarning, match="for clip: these"):
        drawn = flatten(trained_params(tiny, model, model.abstract_params(mesh), 0))
    begun = flatten(tiny_params(model, model.abstract_params(mesh), 0))
    for path in trained:
        np.testing.assert_array_equal(drawn[path], np.float32(0.25))
        assert not np.array_equal(begun[path], drawn[path])
    for path in trained.keys() & random.keys():
        np.testing.assert_array_equal(begun[path], random[path])


def test_tiny_params_no_init(tiny, monkeypatch):
    """Nothing is initialized if all components are shipped."""
    model = small_model(lora=True)
    everything = {p: np.full(leaf.shape, 0.25) for p, leaf in flatten(model.abstract_params()).items()}
    components.write(tiny, "vae", unflatten(everything), {})
    monkeypatch.setattr(SubjectModel, "init", lambda *_: pytest.fail("parameters were initialized"))
    mesh = make_mesh()
    found = flatten(tiny_params(model, model.abstract_params(mesh), 0))
    assert found.keys() == everything.keys()
    shardings = flatten(parameter_shardings(unflatten(everything), mesh))
    assert all(leaf.sharding == shardings[path] for path, leaf in found.items())
    assert all((np.asarray(leaf) == 0.25).all() for leaf in found.values())


def test_tiny_params_warm_started_dla(tiny, mesh):
    """A shipped DLA is used with `WARM_STARTED`, but not with `FROZEN`."""
    model = small_model(lora=True)
    for part, begins in (("mllm", "mllm/"), ("dit", "transformer/")):
        ship(tiny, part, begins, 0.1)  # so that little is initialized
    dla = ship(tiny, "dla", "dla/", 0.25)
    shapes = model.abstract_params(mesh)
    warm, cold = (flatten(tiny_params(model, shapes, 0, names)) for names in (WARM_STARTED, FROZEN))
    for path, leaf in warm.items():
        np.testing.assert_array_equal(leaf, np.float32(0.25) if path in dla else cold[path])


def test_tiny_params_shape_mismatch(tiny):
    leaves = components.read(tiny)
    leaves["vae/decoder/conv_in/bias"] = np.zeros(3, np.float32)
    components.write(tiny, "vae", unflatten(leaves), {})
    with pytest.raises(UserError, match=r"shipped weights of vae do not fit .*: vae/decoder/conv_in/bias is \(3,\)"):
        tiny_params(small_model(lora=True), small_model(lora=True).abstract_params(make_mesh()), 0)


def test_components_read_truncated(tiny):
    file = components.path(tiny, "vae")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"vae\.safetensors is damaged"):
        components.read(tiny)


def test_components_write_overflow(tmp_path):
    """A value beyond float16 is an error, and no file is written."""
    with pytest.raises(UserError, match="part vae: vae/bias has numbers beyond 16 bits"):
        components.write(tmp_path, "vae", {"vae": {"bias": np.asarray([1e6])}}, {})
    assert list(tmp_path.iterdir()) == []


def test_base_folder_location(tmp_path):
    """Shipped and random parameters are copied to the workdir; another checkpoint stays where it is."""
    for name in ("tiny", "random"):
        assert initial.base_folder(name, tmp_path) == (tmp_path / "base", True)
    assert initial.base_folder(str(tmp_path), tmp_path) == (tmp_path, False)
    with pytest.raises(UserError, match="has no params folder"):
        load_params(tmp_path, small_model(lora=True), small_model(lora=True).abstract_params(make_mesh()), 0)
