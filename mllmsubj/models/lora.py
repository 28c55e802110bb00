"""Low-rank adapters of frozen projections: `y = x W + b + scale · (x A) B`."""

import re
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Array, Params


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


@partial(jax.jit, static_argnames="layers_in_middle")
def add_low_rank(kernel: Array, down: Array, up: Array, scale: float | Array, layers_in_middle: bool = False) -> Array:
    """Kernel + scale · down · up, computed in float32, in the kernel's dtype.

    `kernel` is [*layers, in, out], or [in, layers, out] with `layers_in_middle`; the factors have layers in front.
    """
    update = scale * jnp.matmul(down.astype(jnp.float32), up.astype(jnp.float32), precision="highest")
    update = jnp.moveaxis(update, 0, 1) if layers_in_middle else update
    return (kernel.astype(jnp.float32) + update).astype(kernel.dtype)


def merge_lora(params: Params, config: LoRAConfig) -> Params:
    """Adds every adapter to its kernel and removes it; the model computes the same at the base model's cost."""
    leaves = flatten(params)
    merged = {path: leaf for path, leaf in leaves.items() if not is_lora(path)}
    for path, down in leaves.items():
        if path.endswith("/lora_a"):
            base, up = path.removesuffix("lora_a"), leaves[path.removesuffix("a") + "b"]
            merged[base + "kernel"] = add_low_rank(merged[base + "kernel"], down, up, config.scale)
    return unflatten(merged)
