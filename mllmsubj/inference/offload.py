"""CPU offload: parameters are copied to the devices in groups, one for each program that reads them.

FLUX, an 8B MLLM and activations in bfloat16 do not fit into 80 GB of device memory at once; each group does.
"""

import re
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import jax
from jax.sharding import Mesh

from mllmsubj.errors import UserError
from mllmsubj.parallel.sharding import bytes_per_device, parameter_shardings, sharded_shapes
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params

T = TypeVar("T")

PARAMETER_GROUPS: Mapping[str, re.Pattern[str]] = {
    "encode": re.compile(r"mllm/(?!lm_head/).*|clip/.*|dla/.*|vae/encoder/.*"),
    "prepare": re.compile(r"transformer/(modulation|time_text_embed)/.*"),
    "denoise": re.compile(r"transformer/(?!modulation/|time_text_embed/).*"),
    "decode": re.compile(r"vae/decoder/.*"),
}
"""Program -> the paths of the parameters that it reads. No program reads the MLLM's head."""


@runtime_checkable
class RunProgram(Protocol):
    """Calls a program with its parameter group on the devices, and returns its result."""

    def __call__(self, params: Params, group: str, program: Callable[[Params], T]) -> T:
        """Calls `program` with the parameters of `group`, a key of PARAMETER_GROUPS."""
        ...


def is_read(path: str) -> bool:
    """Returns whether any program reads the parameter."""
    return any(pattern.fullmatch(path) for pattern in PARAMETER_GROUPS.values())


def parameters_of(params: Params, group: str) -> Params:
    """Returns the parameters, or shapes, of one group."""
    pattern = PARAMETER_GROUPS[group]
    return unflatten({path: leaf for path, leaf in flatten(params).items() if pattern.fullmatch(path)})


def on_device(params: Params, group: str, program: Callable[[Params], T]) -> T:
    """`RunProgram` for parameters that stay on the devices."""
    return program(parameters_of(params, group))


def cpu_offload(mesh: Mesh) -> RunProgram:
    """`RunProgram` for numpy arrays in host memory: a group is on the devices only while its program runs."""

    def run(params: Params, group: str, program: Callable[[Params], T]) -> T:
        offloaded = parameters_of(params, group)
        loaded = jax.device_put(offloaded, parameter_shardings(offloaded, mesh))
        try:
            # Waiting here keeps the next group from being loaded beside this one.
            return jax.block_until_ready(program(loaded))
        finally:
            for leaf in jax.tree.leaves(loaded):
                leaf.delete()

    return run


def group_bytes(params: Params, mesh: Mesh) -> dict[str, int]:
    """Returns the bytes on each device by parameter group; `params` may be shapes."""
    shapes = sharded_shapes(params, mesh)
    return {group: bytes_per_device(parameters_of(shapes, group)) for group in PARAMETER_GROUPS}


def check_device_memory(sizes: Mapping[str, int], offload: bool, room: int | None) -> None:
    """Raises UserError if parameters alone fill a device.

    `sizes`: bytes of each group, see `group_bytes`; `room`: bytes of a device's memory, None if unknown.
    """
    needed = max(sizes.values()) if offload else sum(sizes.values())
    if room is not None and needed >= room:
        each = ", ".join(f"{group} {size / 1e9:.1f}" for group, size in sizes.items())
        raise UserError(
            f"the parameters take {needed / 1e9:.1f} GB of a device that has {room / 1e9:.1f} ({each}): give --offload "
            "(one group at a time on the device), --frozen_dtype=int8 (8 bits instead of 16) or more devices"
        )
