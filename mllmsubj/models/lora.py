"""Low-rank adapters over projections: `y = x W + b + scale · (x A) B`, beside the frozen `kernel`."""

import re
from dataclasses import dataclass

import jax.numpy as jnp

from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params


@dataclass(frozen=True)
class LoRAConfig:
    """Which projections get an adapter, and how wide. Rank 512 in the paper."""

    rank: int
    alpha: float
    """The adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...]
    """Names of projections, such as "to_q"; matched against the last part of the module path."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def is_lora(path: str) -> bool:
    """Whether a parameter path belongs to an adapter."""
    return re.search(r"/lora_[ab]$", path) is not None


def merge_lora(params: Params, config: LoRAConfig) -> Params:
    """Folds every adapter into its kernel and drops it: the same function, at the cost of the base model."""
    leaves = flatten(params)
    merged = {path: leaf for path, leaf in leaves.items() if not is_lora(path)}
    for path, down in leaves.items():
        if path.endswith("/lora_a"):
            base, up = path.removesuffix("lora_a"), leaves[path.removesuffix("a") + "b"]
            kernel = merged[base + "kernel"]
            update = config.scale * jnp.matmul(down.astype(jnp.float32), up.astype(jnp.float32))
            merged[base + "kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return unflatten(merged)
