"""Parameters come to the devices for their turn and leave after it; the pictures are the same."""

import gc

import jax
import numpy as np
import pytest

from mllmsubj.errors import UserError
from mllmsubj.inference.generator import Generator
from mllmsubj.inference.offload import (
    PARAMETER_GROUPS,
    check_room,
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


def test_every_parameter_has_one_turn(waiting):
    paths = [path for turn in PARAMETER_GROUPS for path in flatten(parameters_of(waiting, turn))]
    assert sorted(paths) == sorted(path for path in flatten(waiting))
    assert not is_read("mllm/lm_head/kernel")


@pytest.mark.parametrize(
    ("waiting", "watched"), [("auto", False), ("auto", True), ("int8", False)], indirect=["waiting"]
)
def test_pictures_are_the_same_again_and_again(waiting, turns, watched):
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


def test_only_the_parameters_of_a_turn_are_on_the_device(waiting, turns, mesh):
    found = {}

    def measured(params, turn, program):
        before = live_bytes()

        def inside(here):
            found[turn] = live_bytes() - before
            return program(here)

        return turns(params, turn, inside)

    gc.collect()  # arrays that tests before left in cycles
    before = live_bytes()
    Generator(small_model(lora=True), SHIFT, measured)(waiting, small_inputs(), SETTINGS, seed=3)
    assert found == group_bytes(waiting, mesh)
    assert live_bytes() == before
    assert sum(found.values()) == sum(leaf.nbytes for leaf in jax.tree.leaves(waiting))


def test_they_leave_after_a_failure_too(waiting, turns):
    before = live_bytes()
    with pytest.raises(RuntimeError, match="in the middle"):
        turns(waiting, "denoise", lambda here: (_ for _ in ()).throw(RuntimeError("in the middle")))
    assert live_bytes() == before


def test_bytes_are_those_of_one_device(waiting):
    whole, split = (group_bytes(waiting, make_mesh(fsdp=n, devices=jax.devices()[:n])) for n in (1, 2))
    assert split.pop("decode") == whole["decode"]  # a VAE of four channels is not worth splitting
    assert all(whole[turn] / 2 <= split[turn] < whole[turn] for turn in split)


def test_devices_without_room():
    turns = {"encode": 10 * 10**9, "prepare": 3 * 10**9, "denoise": 11 * 10**9, "decode": 10**9}
    with pytest.raises(UserError, match=r"take 25\.0 GB of a device that has 16\.0 .*denoise 11\.0.* --offload"):
        check_room(turns, False, 16 * 10**9)
    with pytest.raises(UserError, match=r"take 11\.0 GB of a device that has 8\.0 "):
        check_room(turns, True, 8 * 10**9)
    for offload, room in ((True, 16 * 10**9), (False, 32 * 10**9), (False, None)):
        check_room(turns, offload, room)
