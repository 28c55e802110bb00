"""The parts of the tiny model that are shipped, and random numbers for the others."""

import jax
import numpy as np
import pytest

from mllmsubj import checkpoint, shipped, weights
from mllmsubj.errors import UserError
from mllmsubj.models.subject import SubjectModel, is_trained
from mllmsubj.sharding import flatten, make_mesh, unflatten
from mllmsubj.weights import FOUNDATION, STARTED, load_params, random_params, tiny_params, trained_params, untrained
from tests.small import small_model


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A shipped folder with a VAE alone, and a table that is no part of the model, for the small model."""
    monkeypatch.setattr(checkpoint, "TINY", tmp_path)
    vae = jax.tree.map(
        lambda leaf: np.full(leaf.shape, 0.1, np.float32), small_model(lora=True).abstract_params()["vae"]
    )
    shipped.write(tmp_path, "vae", {"vae": vae, "captions": {"embedding": np.ones((3, 2))}}, {"seed": 3})
    return tmp_path


def test_what_is_shipped_replaces_random_numbers(tiny):
    model, mesh = small_model(lora=True), make_mesh()
    found, random = (dict(flatten(make(model, 0, mesh))) for make in (tiny_params, random_params))
    assert found.keys() == random.keys()
    for path, leaf in found.items():
        if path.startswith("vae/"):
            np.testing.assert_array_equal(leaf, np.float32(np.float16(0.1)))
        else:
            np.testing.assert_array_equal(leaf, random[path])
        assert (leaf.dtype, leaf.sharding) == (random[path].dtype, random[path].sharding)
    assert shipped.provenance(tiny, "vae") == {"seed": 3}


def test_what_is_random_is_named(tiny):
    assert untrained(tiny) == ("mllm", "clip", "transformer", "dla")
    assert untrained(tiny / "other") == ()
    with pytest.warns(UserWarning, match="'tiny' has no trained weights yet for mllm, clip, transformer, dla: these"):
        drawn = trained_params(tiny, small_model(lora=True), 0, make_mesh())
    np.testing.assert_array_equal(drawn["vae"]["decoder"]["conv_in"]["bias"], np.float32(np.float16(0.1)))


def test_what_the_method_trained_is_for_drawing_alone(tiny):
    model, mesh = small_model(lora=True), make_mesh()
    leaves = {path: np.full(leaf.shape, 0.25) for path, leaf in flatten(model.abstract_params())}
    trained = {path: leaf for path, leaf in leaves.items() if is_trained(path)}
    frozen = {p: leaf for p, leaf in leaves.items() if p.startswith("transformer/") and p not in trained}
    shipped.write(tiny, "dit", unflatten(frozen), {})
    shipped.write(tiny, shipped.SUBJECT, unflatten(trained), {})
    assert untrained(tiny) == ("mllm", "clip")
    with pytest.warns(UserWarning, match="for mllm, clip: these"):
        drawn = dict(flatten(trained_params(tiny, model, 0, mesh)))
    begun, random = (dict(flatten(make(model, 0, mesh))) for make in (tiny_params, random_params))
    for path in trained:
        np.testing.assert_array_equal(drawn[path], np.float32(0.25))
        np.testing.assert_array_equal(begun[path], random[path])


def test_no_random_numbers_where_everything_is_shipped(tiny, monkeypatch):
    model = small_model(lora=True)
    everything = {p: np.full(leaf.shape, 0.25) for p, leaf in flatten(model.abstract_params())}
    shipped.write(tiny, "vae", unflatten(everything), {})
    monkeypatch.setattr(SubjectModel, "init", lambda *_: pytest.fail("parameters were initialized"))
    found = dict(flatten(tiny_params(model, 0, make_mesh())))
    assert found.keys() == everything.keys()
    assert all((np.asarray(leaf) == 0.25).all() for leaf in found.values())


def test_a_dla_alone_is_a_start(tiny):
    model, mesh = small_model(lora=True), make_mesh()
    dla = {p: np.full(leaf.shape, 0.25) for p, leaf in flatten(model.abstract_params()) if p.startswith("dla/")}
    shipped.write(tiny, "dla", unflatten(dla), {})
    warm, cold = (dict(flatten(tiny_params(model, 0, mesh, names))) for names in (STARTED, FOUNDATION))
    for path, leaf in warm.items():
        np.testing.assert_array_equal(leaf, np.float32(0.25) if path in dla else cold[path])


def test_other_sizes_than_what_is_shipped(tiny):
    leaves = shipped.read(tiny)
    leaves["vae/decoder/conv_in/bias"] = np.zeros(3, np.float32)
    shipped.write(tiny, "vae", unflatten(leaves), {})
    with pytest.raises(UserError, match=r"shipped weights of vae do not fit .*: vae/decoder/conv_in/bias is \(3,\)"):
        tiny_params(small_model(lora=True), 0, make_mesh())


def test_a_shipped_file_that_is_cut_short(tiny):
    file = shipped.path(tiny, "vae")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"vae\.safetensors is damaged"):
        shipped.read(tiny)


def test_a_number_beyond_16_bits_is_not_written(tmp_path):
    with pytest.raises(UserError, match="part vae: vae/bias has numbers beyond 16 bits"):
        shipped.write(tmp_path, "vae", {"vae": {"bias": np.asarray([1e6])}}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_run_takes_what_is_shipped_into_its_workdir(tmp_path):
    for name in ("tiny", "random"):
        assert weights.base_folder(name, tmp_path) == (tmp_path / "base", True)
    assert weights.base_folder(str(tmp_path), tmp_path) == (tmp_path, False)
    with pytest.raises(UserError, match="has no params folder"):
        load_params(tmp_path, small_model(lora=True), 0, make_mesh())
