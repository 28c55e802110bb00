"""TPU slices by Google's names, with their chips, hosts, and names in GKE and the TPU runtime.

The number in an accelerator type counts TensorCores for v4 and v5p, two per chip (v5p-64 is 32 chips), and chips for
v5e and v6e. A host has 4 chips; slices of v5e and v6e up to 8 chips are one host, on GKE too (machine types ending
in -1t, -4t, -8t).

Sources: docs.cloud.google.com/tpu/docs/{v4, v5e, v5p, v6e}, "Configurations", and /runtimes; node labels as in
AI-Hypercomputer/xpk, src/xpk/core/system_characteristics.py.
"""

import difflib
import math
from dataclasses import dataclass

from commands import Mistake

CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclass(frozen=True)
class Generation:
    """A TPU generation."""

    name: str
    prefix: str
    """Prefix of its accelerator types."""
    cores_per_chip: int
    """Number that a chip counts for in accelerator types."""
    gke_accelerator: str
    """Value of the node label cloud.google.com/gke-tpu-accelerator."""
    runtime_version: str
    topologies: tuple[str, ...]


GENERATIONS = (
    Generation("v4", "v4", 2, "tpu-v4-podslice", "tpu-ubuntu2204-base", CUBES),
    Generation("v5e", "v5litepod", 1, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", SQUARES),
    Generation("v5p", "v5p", 2, "tpu-v5p-slice", "v2-alpha-tpuv5", (*CUBES, "16x16x16", "16x16x24")),
    Generation("v6e", "v6e", 1, "tpu-v6e-slice", "v2-alpha-tpuv6e", SQUARES),
)


@dataclass(frozen=True)
class Slice:
    """Chips of one generation, connected in one topology."""

    generation: Generation
    topology: str

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(int(side) for side in self.topology.split("x"))

    @property
    def chips_per_host(self) -> int:
        """Number of chips of each host."""
        flat = self.topology.count("x") == 1
        return self.chips if flat and self.chips <= 8 else 4

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """Name of the slice for gcloud and xpk."""
        return f"{self.generation.prefix}-{self.chips * self.generation.cores_per_chip}"


SLICES = tuple(Slice(generation, topology) for generation in GENERATIONS for topology in generation.topologies)
BY_NAME = {part.accelerator_type: part for part in SLICES} | {
    f"{part.generation.name}:{part.topology}": part for part in SLICES
}


def find_slice(name: str) -> Slice:
    """Returns the slice of an accelerator type (v5p-128) or of generation and topology (v5p:4x4x4).

    Raises Mistake for an unknown name, with the nearest known one.
    """
    spelled = name.replace("v5e-", "v5litepod-")
    if spelled not in BY_NAME:
        match = difflib.get_close_matches(spelled, BY_NAME, n=1, cutoff=0.5)
        raise Mistake(f"unknown TPU slice {name!r}; give one such as {(match or ['v5p-64'])[0]!r}")
    return BY_NAME[spelled]
