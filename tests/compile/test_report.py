"""The programs of a small experiment, compiled for TPU slices that are not attached."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mllmsubj.checkpoints.format import TINY, read_config
from mllmsubj.compile.programs import OutOfMemoryError, _compiled
from mllmsubj.compile.report import _failed, report
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError
from mllmsubj.models.subject import SubjectModel
from mllmsubj.parallel.sharding import bytes_per_device, make_mesh, parameter_shardings, with_sharding
from mllmsubj.parallel.topologies import find_slice

FRONT_DOOR = {
    "fits",
    "peak_bytes_per_chip",
    "hbm_bytes_per_chip",
    "model_flops",
    "predicted_seconds",
    "predicted_mfu",
    "compile_seconds",
    "collectives",
}


@pytest.fixture(scope="module")
def tiny():
    return Experiment.from_config(read_config(TINY))


@pytest.fixture(scope="module", params=["v5e:2x2", "v5p:2x2x1"])
def update(tiny, request):
    """Report on the training step of tiny, on four chips of each of two kinds."""
    return report("train", tiny, find_slice(request.param))


@pytest.mark.slow
def test_report_train(update):
    """The step fits on the slice, and its compiled FLOPs are about the model's."""
    assert set(update) >= FRONT_DOOR
    assert update["fits"]
    assert update["chips"] == 4
    assert [row["name"] for row in update["programs"]] == ["encode", "update"]
    for row in update["programs"]:
        # Compiled FLOPs are the model's, except at the borders of images and tiles.
        assert 4 * row["compiled_flops"] == pytest.approx(row["model_flops"], rel=0.15)
    assert update["collectives"]
    assert 0 < update["predicted_mfu"] < 1


def test_report_sample(tiny):
    """Sampling has four programs."""
    unguided = dict(text_guidance=1.0, reference_guidance=1.0)  # makes the program a third as large
    small = replace(tiny, sampling=replace(tiny.sampling, batch_size=4, steps=4, **unguided))
    found = report("sample", small, find_slice("v5e:2x2"))
    assert [row["name"] for row in found["programs"]] == ["encode", "prepare", "denoise", "decode"]
    assert found["fits"]
    denoise, decode = found["programs"][2:]
    decoder = SubjectModel(tiny.model, tiny.compute.resolve()).abstract_params()["vae"]["decoder"]
    # Kernels are gathered on each chip, images are not.
    assert sum(decode["collectives"].values()) < sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(decoder)
    )
    assert 4 * denoise["compiled_flops"] == pytest.approx(denoise["model_flops"], rel=0.15)


@pytest.mark.slow
def test_report_sample_paper():
    """The paper's model at full size fits on a slice, as in the table of docs/tpu.md; takes minutes."""
    found = report("sample", Experiment.from_config(load_config("configs/paper.py:v6e-16")), find_slice("v6e:4x4"))
    assert found["fits"]
    assert found["predicted_mfu"] > 0.5


def test_report_indivisible(tiny):
    """Mesh axes and batch sizes that do not divide by the devices are errors."""
    four = find_slice("v5e:2x2")
    with pytest.raises(UserError, match=r"mesh .* does not fit 4 devices"):
        report("train", replace(tiny, mesh=replace(tiny.mesh, tensor=3)), four)
    with pytest.raises(UserError, match=r"train\.batch_size 6 is not divisible"):
        report("train", replace(tiny, train=replace(tiny.train, batch_size=6)), four)
    with pytest.raises(UserError, match=r"sampling\.batch_size 3 is not divisible"):
        report("sample", replace(tiny, sampling=replace(tiny.sampling, batch_size=3)), four)


def test_bytes_per_device_sharded(tiny):
    """A device's bytes are those of its shards."""
    mesh = make_mesh(**asdict(tiny.mesh), devices=list(find_slice("v5e:2x2").devices))
    shapes = SubjectModel(tiny.model, tiny.compute.resolve()).abstract_params()
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    part = bytes_per_device(with_sharding(shapes, parameter_shardings(shapes, mesh)))
    assert whole / 4 < part < whole / 3  # biases and norms are replicated


def test_compiled_does_not_fit():
    """The report of a program that does not fit contains its peak memory."""
    one = find_slice("v5e:1x1")
    mesh = make_mesh(1, 1, 1, list(one.devices))
    x = jax.ShapeDtypeStruct((2**17, 2**17), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))  # 32 GiB
    with pytest.raises(OutOfMemoryError) as caught:
        _compiled("square", lambda: jax.jit(lambda x: x @ x).lower(x))
    row = _failed(caught.value, one.chip)
    assert row.name == "square"
    assert row.predicted_seconds is None
    assert row.peak_bytes == 64 * 2**30
