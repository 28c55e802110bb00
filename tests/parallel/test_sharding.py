"""The sharding rules of parameters, and `constrain`."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from mllmsubj.errors import UserError
from mllmsubj.parallel.sharding import (
    SMALL,
    constrain,
    make_mesh,
    parameter_shardings,
    parameter_specs,
)
from tests.small import small_model


def test_parameter_specs_model():
    """Every parameter of the model matches a rule."""
    specs = parameter_specs(small_model(lora=True).abstract_params())
    attention = specs["transformer"]["double_blocks"]["attn"]
    assert attention["to_q"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert attention["to_out"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert attention["to_q"]["lora_a"] == PartitionSpec(None, "fsdp", None)
    assert specs["transformer"]["single_blocks"]["proj_out"]["lora_a"] == PartitionSpec(None, None, "fsdp")
    assert specs["transformer"]["modulation"]["single"]["kernel"] == PartitionSpec("fsdp", None, "tensor")
    assert specs["vae"]["decoder"]["conv_in"]["kernel"] == PartitionSpec(None, None, None, "fsdp")


def test_parameter_specs_unknown_paths():
    """The error lists paths without a rule and parameters with other numbers of axes."""
    leaf = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    tree = {
        "transformer": {"mystery": {"kernel": leaf}, "proj_out": {"kernel": jax.ShapeDtypeStruct((4,), jnp.float32)}}
    }
    with pytest.raises(ValueError, match=r"mystery/kernel matches no rule.*proj_out/kernel has 1 axes"):
        parameter_specs(tree)


def test_parameter_shardings_indivisible():
    """An axis whose size is not divisible is not sharded."""
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    tree = {"transformer": {"proj_out": {"kernel": jax.ShapeDtypeStruct((6, 8), jnp.float32)}}}
    spec = parameter_shardings(tree, mesh)["transformer"]["proj_out"]["kernel"].spec
    assert spec == PartitionSpec(None, "tensor")


def test_parameter_shardings_small():
    """Small parameters are not sharded into small parts."""
    mesh = make_mesh(data=1, fsdp=8, tensor=1)
    for shape, spec in [((16, 64), None), ((32, 64), "fsdp"), ((16, SMALL // 16), "fsdp")]:
        tree = {"transformer": {"proj_out": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}}
        assert parameter_shardings(tree, mesh)["transformer"]["proj_out"]["kernel"].spec[0] == spec


def test_constrain_without_mesh():
    """Without a mesh, `constrain` returns its input."""
    x = jnp.ones((2, 3, 4))
    assert constrain(x, "batch", "seq", "embed") is x


def test_constrain_divisible_axes():
    """Axes are sharded where their size is divisible."""
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        split = jax.jit(lambda x: constrain(x, "batch", "seq", "hidden"))(jnp.ones((4, 3, 6)))
        whole = jax.jit(lambda x: constrain(x, "batch", "seq", "hidden"))(jnp.ones((1, 3, 6)))
    assert split.sharding.spec == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert whole.sharding.spec == PartitionSpec(None, None, "tensor")


@pytest.mark.parametrize(
    "sizes", [dict(fsdp=3), dict(data=-1, fsdp=-1), dict(data=2, fsdp=2, tensor=1), dict(tensor=0)]
)
def test_make_mesh_invalid(sizes):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(**sizes)
