"""Peak figures of accelerators, for utilization and predictions.

Sources: docs.cloud.google.com/tpu/docs/{v4, v5e, v5p, v6e, tpu7x} ("Key specifications"); TPU v4's interconnect,
6 links of 50 GB/s each way, from Jouppi et al. 2023 (arXiv 2304.01433); NVIDIA's data sheets of A100, H100 and H200
(SXM; bfloat16 without sparsity).
"""

import re
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peak figures of one chip."""

    name: str
    kind: str
    """Regex that matches the full `jax.Device.device_kind`."""
    flops: float
    """Peak of dense bfloat16, in FLOP/s."""
    hbm_bytes: int
    hbm_bandwidth: float
    """Bandwidth in bytes/s."""
    link_bandwidth: float
    """Bandwidth between chips (ICI, NVLink) in bytes/s, the sum over both directions of all links."""
    devices: int = 1
    """Number of `jax.Device`s per chip: its cores if they are not programmed as one."""

    @property
    def device_flops(self) -> float:
        """Peak of one `jax.Device`, in FLOP/s."""
        return self.flops / self.devices


CHIPS = (
    Chip("v4", r"TPU v4", 275e12, 32 * GIB, 1200e9, 600e9),
    Chip("v5e", r"TPU v5( lite|e)", 197e12, 16 * GIB, 819e9, 400e9),
    Chip("v5p", r"TPU v5p?", 459e12, 95 * GIB, 2765e9, 1200e9),
    Chip("v6e", r"TPU v6( lite|e)", 918e12, 32 * GIB, 1638e9, 800e9),
    Chip("tpu7x", r"TPU ?v?7x", 2307e12, 192 * GIB, 7380e9, 1200e9, devices=2),
    Chip("A100-40GB", r"NVIDIA A100-SXM4-40GB", 312e12, 40 * GIB, 1555e9, 600e9),
    Chip("A100-80GB", r"NVIDIA A100-SXM4-80GB", 312e12, 80 * GIB, 2039e9, 600e9),
    Chip("H100", r"NVIDIA H100 80GB HBM3", 989e12, 80 * GIB, 3350e9, 900e9),
    Chip("H200", r"NVIDIA H200", 989e12, 141 * GIB, 4800e9, 900e9),
)


def find_chip(kind: str) -> Chip | None:
    """Returns the chip of a `device_kind`, or None if it is not in the table."""
    return next((chip for chip in CHIPS if re.fullmatch(chip.kind, kind)), None)
