"""Generation in turns: which parameters each of its programs reads, and how they get to the devices.

Either all of them stay on the devices, or each program's come for its turn and leave after it, as in diffusers'
`enable_model_cpu_offload`; the programs are the same ones.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

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
"""A turn -> the paths of the parameters that its program reads. Nobody reads the MLLM's head."""

Turn = Callable[[Params, str, Callable[[Params], T]], T]
"""`(params, turn, program) -> program(the parameters of that turn, on the devices)`."""


def is_read(path: str) -> bool:
    """Whether any turn reads a parameter."""
    return any(pattern.fullmatch(path) for pattern in PARAMETER_GROUPS.values())


def parameters_of(params: Params, turn: str) -> Params:
    """The parameters, or shapes, that a turn reads."""
    return unflatten({path: leaf for path, leaf in flatten(params).items() if PARAMETER_GROUPS[turn].fullmatch(path)})


def on_device(params: Params, turn: str, program: Callable[[Params], T]) -> T:
    """The turn of parameters that stay on the devices."""
    return program(parameters_of(params, turn))


def cpu_offload(mesh: Mesh) -> Turn:
    """The turn of parameters that wait in host memory, as numpy arrays."""

    def run(params: Params, turn: str, program: Callable[[Params], T]) -> T:
        waiting = parameters_of(params, turn)
        here = jax.device_put(waiting, parameter_shardings(waiting, mesh))
        try:
            return jax.block_until_ready(program(here))  # only then may the next turn's take their place
        finally:
            for leaf in jax.tree.leaves(here):
                leaf.delete()

    return run


def group_bytes(params: Params, mesh: Mesh) -> dict[str, int]:
    """Bytes of parameters on each device, turn by turn; `params` may be shapes."""
    held = sharded_shapes(params, mesh)
    return {turn: bytes_per_device(parameters_of(held, turn)) for turn in PARAMETER_GROUPS}


def check_room(turns: Mapping[str, int], offload: bool, room: int | None) -> None:
    """Raises UserError if parameters alone, `turns` bytes, fill the `room` bytes of a device; None: unknown."""
    needed = max(turns.values()) if offload else sum(turns.values())
    if room is not None and needed >= room:
        each = ", ".join(f"{turn} {size / 1e9:.1f}" for turn, size in turns.items())
        raise UserError(
            f"the parameters take {needed / 1e9:.1f} GB of a device that has {room / 1e9:.1f} ({each}): give --offload "
            "(they take turns), --frozen_dtype=int8 (8 bits instead of 16) or more devices"
        )
