"""Low-rank adapters of frozen projections: `y = x W + b + scale · (x A) B`."""

import re
from dataclasses import dataclass

import jax.numpy as jnp

from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params


@dataclass(frozen=True)
class LoRAConfig:
    """Rank, scale and target projections of low-rank adapters; the paper's rank is 512."""

    rank: int
    alpha: float
    """The adapter's output is multiplied by alpha / rank."""
    targets: tuple[str, ...]
    """Names of projections, such as "to_q"; matched against the last component of the module path."""

    @property
    def scale(self) -> float:
        """Factor of the adapter's output, alpha / rank."""
        return self.alpha / self.rank


def is_lora(path: str) -> bool:
    """Returns whether a parameter path belongs to an adapter."""
    return re.search(r"/lora_[ab]$", path) is not None


def merge_lora(params: Params, config: LoRAConfig) -> Params:
    """Adds every adapter to its kernel and removes it; the model computes the same at the base model's cost."""
    leaves = flatten(params)
    merged = {path: leaf for path, leaf in leaves.items() if not is_lora(path)}
    for path, down in leaves.items():
        if path.endswith("/lora_a"):
            base, up = path.removesuffix("lora_a"), leaves[path.removesuffix("a") + "b"]
            kernel = merged[base + "kernel"]
            update = config.scale * jnp.matmul(down.astype(jnp.float32), up.astype(jnp.float32))
            merged[base + "kernel"] = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
    return unflatten(merged)
