"""CPU offload: a parameter group is on the device only while its program runs; images do not change."""

import gc

import jax
import numpy as np
import pytest

from mllmsubj.errors import UserError
from mllmsubj.inference.generator import Generator
from mllmsubj.inference.offload import (
    PARAMETER_GROUPS,
    check_device_memory,
    cpu_offload,
    group_bytes,
    is_read,
    on_device,
    parameters_of,
)
from mllmsubj.models.quantize import quantize_frozen
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.tree import flatten
from tests.small import SETTINGS, SHIFT, random_like, small_inputs, small_model


def live_bytes():
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module", params=["auto", "int8"])
def waiting(request):
    """Parameters in host memory."""
    params = random_like(small_model(lora=True).abstract_params())
    return jax.device_get(quantize_frozen(params) if request.param == "int8" else params)


@pytest.fixture(scope="module")
def turns(mesh):
    return cpu_offload(mesh)


def test_parameter_groups_partition(waiting):
    """Each parameter is in exactly one group."""
    paths = [path for turn in PARAMETER_GROUPS for path in flatten(parameters_of(waiting, turn))]
    assert sorted(paths) == sorted(path for path in flatten(waiting))
    assert not is_read("mllm/lm_head/kernel")


@pytest.mark.parametrize(
    ("waiting", "watched"), [("auto", False), ("auto", True), ("int8", False)], indirect=["waiting"]
)
def test_cpu_offload_equal_images(waiting, turns, watched):
    """Repeated calls with offload give the same images as parameters on the device."""
    steps = []
    progress = (lambda *at: steps.append(at)) if watched else None
    model = small_model(lora=True)
    here = jax.device_put(waiting, jax.devices()[0])
    want = Generator(model, SHIFT, on_device)(here, small_inputs(), SETTINGS, 3, 3, progress)
    assert want.std() > 0.01
    generator = Generator(model, SHIFT, turns)
    for _ in range(2):
        np.testing.assert_array_equal(generator(waiting, small_inputs(), SETTINGS, 3, 3, progress), want)
    assert len(steps) == (3 * 8 if watched else 0)


def test_cpu_offload_device_memory(waiting, turns, mesh):
    """Only the parameters of one group are on the device at a time."""
    found = {}

    def measured(params, turn, program):
        before = live_bytes()

        def inside(here):
            found[turn] = live_bytes() - before
            return program(here)

        return turns(params, turn, inside)

    gc.collect()  # arrays of earlier tests in reference cycles
    before = live_bytes()
    Generator(small_model(lora=True), SHIFT, measured)(waiting, small_inputs(), SETTINGS, seed=3)
    assert found == group_bytes(waiting, mesh)
    assert live_bytes() == before
    assert sum(found.values()) == sum(leaf.nbytes for leaf in jax.tree.leaves(waiting))


def test_cpu_offload_after_error(waiting, turns):
    """Parameters are removed from the device after an error."""
    before = live_bytes()
    with pytest.raises(RuntimeError, match="in the middle"):
        turns(waiting, "denoise", lambda here: (_ for _ in ()).throw(RuntimeError("in the middle")))
    assert live_bytes() == before


def test_group_bytes_sharded(waiting):
    """`group_bytes` gives the bytes on one device."""
    whole, split = (group_bytes(waiting, make_mesh(fsdp=n, devices=jax.devices()[:n])) for n in (1, 2))
    assert split.pop("decode") == whole["decode"]  # a VAE of four channels is not sharded
    assert all(whole[turn] / 2 <= split[turn] < whole[turn] for turn in split)


def test_check_room_insufficient_memory():
    turns = {"encode": 10 * 10**9, "prepare": 3 * 10**9, "denoise": 11 * 10**9, "decode": 10**9}
    with pytest.raises(UserError, match=r"take 25\.0 GB of a device that has 16\.0 .*denoise 11\.0.* --offload"):
        check_device_memory(turns, False, 16 * 10**9)
    with pytest.raises(UserError, match=r"take 11\.0 GB of a device that has 8\.0 "):
        check_device_memory(turns, True, 8 * 10**9)
    for offload, room in ((True, 16 * 10**9), (False, 32 * 10**9), (False, None)):
        check_device_memory(turns, offload, room)
