"""Layers that several models share.

Activations carry the compute dtype: a model casts its inputs once, every parameter is cast where it is used,
and norms, rotations and softmax work in float32 and come back in the dtype they were given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mllmsubj.models.lora import LoRAConfig
from mllmsubj.ops.attention import Implementation
from mllmsubj.typing import Array, Float, Params


@dataclass(frozen=True)
class Compute:
    """How a model runs, as opposed to what it is: none of this changes parameters or their shapes."""

    dtype: Any = jnp.float32
    """Dtype of activations: bfloat16 on accelerators, float32 on CPUs."""
    remat: bool = False
    """Recompute each block in the backward pass instead of storing what is inside it."""
    attention: Implementation = "xla"
    unroll: int = 1
    """Blocks laid out per step of the loop over layers."""


class Dense(nn.Module):
    """Linear projection with an optional low-rank adapter; parameters `kernel` [in, out], `bias`, `lora_a`, `lora_b`."""

    features: int
    use_bias: bool = True
    lora: LoRAConfig | None = None
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows e"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = jnp.matmul(x, kernel.astype(x.dtype))
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros_init(), (self.features,)).astype(x.dtype)
        if self.lora is not None and self.name in self.lora.targets:
            down = self.param("lora_a", nn.initializers.lecun_normal(), (x.shape[-1], self.lora.rank))
            up = self.param("lora_b", nn.initializers.zeros_init(), (self.lora.rank, self.features))
            y += self.lora.scale * ((x @ down.astype(x.dtype)) @ up.astype(x.dtype))
        return y


class RMSNorm(nn.Module):
    """x / rms(x) · scale over the last axis, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        return rms_norm(x, scale, self.eps)


class LayerNorm(nn.Module):
    """Layer norm with scale and bias over the last axis, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        return (layer_norm(x.astype(jnp.float32), self.eps) * scale + bias).astype(x.dtype)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """x / rms(x) · scale over the last axis, in float32, returned in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: Array, eps: float) -> Array:
    """Layer norm without parameters over the last axis, in float32, returned in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def stack(block: type[nn.Module], length: int, compute: Compute) -> Callable[..., nn.Module]:
    """The constructor of `length` equal blocks as one scanned module, each leaf with a leading axis of layers.

    `block.__call__(x, *shared)` returns `(x, out)`: `x` goes on to the next block, `shared` is the same for
    all of them, and the `out`s come back stacked (None stays None).
    """
    body = nn.remat(block, prevent_cse=False) if compute.remat else block
    return nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=length,
        unroll=compute.unroll,
    )


def init_params(model: nn.Module, key: Array) -> Params:
    """Random parameters, from the model's own `example()` inputs."""
    return model.init(key, *model.example())["params"]


def abstract_params(model: nn.Module) -> Params:
    """Shapes and dtypes of a model's parameters; nothing is allocated."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
