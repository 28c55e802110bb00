"""TPU slices by name, such as v5p:4x4x4, and their devices for compilation by libtpu without a TPU."""

import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from mllmsubj.errors import UserError, nearest
from mllmsubj.parallel.chips import Chip, find_chip

FLAT = tuple(f"{a}x{b}" for a, b in ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)))
CUBIC = tuple(
    "x".join(map(str, sides))
    for sides in (
        *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16)),
        *((8, 16, 16), (16, 16, 16)),
    )
)
KNOWN = {"v4": CUBIC, "v5e": FLAT, "v5p": CUBIC, "v6e": FLAT, "tpu7x": CUBIC}
"""Generation -> slices that are suggested; libtpu may support others."""

_SETTINGS = {
    # Without these, libtpu queries a metadata server and logs messages if there is none.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock is for sharing a TPU; none is used here
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "4",
    "TPU_STDERR_LOG_LEVEL": "4",
}


@dataclass(frozen=True)
class Slice:
    """Devices of one slice; one `jax.Device` is a chip, or on tpu7x one of its two cores."""

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return len(self.devices) // self.chip.devices


def find_slice(name: str) -> Slice:
    """Returns a slice by name; raises UserError, with the nearest name, if it is unknown or libtpu is missing."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu, the extra 'aot': pip install 'mllmsubj[aot]'")
    generation, _, shape = name.partition(":")
    known = [f"{kind}:{sides}" for kind, shapes in KNOWN.items() for sides in shapes]
    if generation not in KNOWN or not all(side.isdecimal() for side in shape.split("x")):
        raise UserError(f"unknown topology {name!r}{nearest(name, known)}; give one such as 'v5p:4x4x4'")
    os.environ.update({key: value for key, value in _SETTINGS.items() if key not in os.environ})
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{generation}-{math.prod(map(int, shape.split('x')))}")
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if shape == "1x1" else {}
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device, as on real TPUs
    found: Any
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # jaxlib raises several types
        reason = str(error).splitlines()[0]
        hint = "" if name in known else nearest(name, known)
        raise UserError(f"libtpu does not support the topology {name!r}{hint}: {reason}") from error
    chip = find_chip(found[0].device_kind)
    if chip is None:
        raise UserError(f"no peak figures for {found[0].device_kind!r}; add the chip to mllmsubj/parallel/chips.py")
    return Slice(name, chip, tuple(found))


def compile_there(lowered: jax.stages.Lowered, effort: float = 0.0) -> jax.stages.Compiled:
    """Compiles without the persistent cache, which cannot restore programs for devices of another machine.

    `effort`, from -1 to 1, is the compiler's effort to optimize execution time.
    """
    names = ("jax_enable_compilation_cache", "jax_exec_time_optimization_effort")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (False, effort), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX checks only once whether the cache is enabled
    try:
        return lowered.compile()
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
