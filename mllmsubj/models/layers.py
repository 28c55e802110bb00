"""Layers shared by several models.

Activations have the compute dtype: a model casts its inputs once and every parameter is cast where it is used.
Norms, rotations and softmax compute in float32 and return the dtype of their input.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from itertools import accumulate
from operator import add
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mllmsubj.models.lora import LoRAConfig
from mllmsubj.ops.attention import RESIDUALS, Implementation
from mllmsubj.parallel.sharding import STACKED
from mllmsubj.parallel.target import loops_overlap, platform
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Array, Float, Params, PyTree


@dataclass(frozen=True)
class Compute:
    """How a model is executed; of these options only `scan_layers` changes the layout of parameters."""

    dtype: Any = jnp.float32
    """Dtype of activations: bfloat16 on accelerators, float32 on CPUs."""
    remat: bool = False
    """Recompute each block in the backward pass instead of storing its activations, except `RESIDUALS`."""
    attention: Implementation = "auto"
    scan_layers: bool = True
    """Run one compiled block in a loop over layers; False unrolls the layers, for parameters from `unstack`."""

    @property
    def loops(self) -> bool:
        """Whether programs may loop over layers and images, which shortens compilation."""
        return self.scan_layers and not loops_overlap()


def parameter(module: nn.Module, name: str, initializer: Callable[..., Array], shape: tuple[int, ...]) -> Array:
    """Returns a module's parameter, initialized if it does not exist; raises ValueError if its shape differs.

    `module.param` is slower, since it traces the initializer of an existing parameter to compare shapes.
    """
    if not module.has_variable("params", name):
        return module.param(name, initializer, shape)
    found: Array = module.get_variable("params", name)
    if found.shape != shape:
        raise ValueError(f"parameter {'/'.join((*module.path, name))} is {found.shape}; its module takes {shape}")
    return found


class Dense(nn.Module):
    """Linear projection with an optional low-rank adapter; parameters `kernel` [in, out], `bias`, `lora_a`, `lora_b`.

    A kernel in 8 bits has a `kernel_scale` [out] (models/quantize.py).
    """

    features: int
    use_bias: bool = True
    lora: LoRAConfig | None = None
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    reads_heads: bool = False
    """Whether the first input is [*rows, h, k], contracted over both axes; merging them first costs TPUs a copy."""
    head_dim: int | None = None
    """Channels of a head, k; if set, the output is [*rows, features / k, k]."""

    @nn.compact
    def __call__(self, *parts: Float[Array, "..."]) -> Float[Array, "..."]:
        """Projects [*rows, d] to [*rows, features]; several inputs count as concatenated along their channels."""
        dtype = parts[0].dtype
        channels = [part.shape[-2 if i == 0 and self.reads_heads else -1 :] for i, part in enumerate(parts)]
        product, width = partial(_product, parts, channels), sum(map(math.prod, channels))
        y = product(self._split_heads(parameter(self, "kernel", self.kernel_init, (width, self.features))))
        y = scaled(self, y)
        if self.use_bias:
            y += self._split_heads(
                parameter(self, "bias", nn.initializers.zeros_init(), (self.features,)).astype(dtype)
            )
        if self.lora is not None and self.name in self.lora.targets:
            down = parameter(self, "lora_a", nn.initializers.lecun_normal(), (width, self.lora.rank))
            up = parameter(self, "lora_b", nn.initializers.zeros_init(), (self.lora.rank, self.features))
            y += self.lora.scale * _matmul(product(down), self._split_heads(up.astype(dtype)))
        return y

    def _split_heads(self, x: Array) -> Array:
        """Splits the last axis into heads if `head_dim` is set."""
        return x if self.head_dim is None else x.reshape(*x.shape[:-1], -1, self.head_dim)


def scaled(module: nn.Module, y: Array) -> Array:
    """Multiplies the output of a module's `kernel` by its `kernel_scale`, if the kernel is in 8 bits."""
    scale: Array | None = module.get_variable("params", "kernel_scale")
    return y if scale is None else (y * scale.reshape(-1, y.shape[-1])).astype(y.dtype)  # [heads, k] if y has heads


def _product(parts: tuple[Array, ...], channels: list[tuple[int, ...]], kernel: Array) -> Array:
    """Sums the products of inputs, whose last axes are `channels`, with their rows of a kernel."""
    kernel, splits = kernel.astype(parts[0].dtype), list(accumulate(map(math.prod, channels)))[:-1]
    rows = jnp.split(kernel, splits) if splits else [kernel]
    shaped = (row.reshape(*axes, *kernel.shape[1:]) for row, axes in zip(rows, channels, strict=True))
    return reduce(add, map(_matmul, parts, shaped, map(len, channels)))


def _matmul(x: Array, kernel: Array, axes: int = 1) -> Array:
    """Contracts the last `axes` of x with the first of the kernel.

    On CPUs all rows are merged into one axis, so that the kernel's gradient, a sum over rows, needs no copies.
    """
    if platform() != "cpu":
        return jnp.tensordot(x, kernel, axes)
    width = math.prod(kernel.shape[:axes])
    y = jnp.matmul(x.reshape(-1, width), kernel.reshape(width, -1))
    return y.reshape(*x.shape[:-axes], *kernel.shape[axes:])


def gelu(x: Array) -> Array:
    """Returns GELU in its tanh approximation."""
    return _recompute_on_cpu(partial(jax.nn.gelu, approximate=True))(x)


def swiglu(gate: Array, up: Array) -> Array:
    """Returns silu(gate) · up."""
    return _recompute_on_cpu(lambda gate, up: jax.nn.silu(gate) * up)(gate, up)


def _recompute_on_cpu(elementwise: Callable[..., Array]) -> Callable[..., Array]:
    """Recomputes from the inputs in the backward pass on CPUs, where storing intermediates costs more than a tanh."""
    return jax.checkpoint(elementwise) if platform() == "cpu" else elementwise


class RMSNorm(nn.Module):
    """RMS norm, x / rms(x) · scale, over the last axis, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Normalizes; the result has the dtype of `x`."""
        scale = parameter(self, "scale", nn.initializers.ones_init(), (x.shape[-1],))
        return rms_norm(x, scale, self.eps)


class LayerNorm(nn.Module):
    """Layer norm with scale and bias over the last axis, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        """Normalizes; the result has the dtype of `x`."""
        scale = parameter(self, "scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (x.shape[-1],))
        return (layer_norm(x.astype(jnp.float32), self.eps) * scale + bias).astype(x.dtype)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Returns x / rms(x) · scale over the last axis, computed in float32, in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: Array, eps: float) -> Array:
    """Applies layer norm without parameters over the last axis, computed in float32, in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    wide -= jnp.mean(wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def stack(
    block: type[nn.Module], length: int, compute: Compute, *, per_layer_input: bool = False
) -> Callable[..., nn.Module]:
    """Returns the constructor of one module of `length` equal blocks.

    With `scan_layers` each leaf has a leading axis of layers, else see `UnrolledStack`. `block.__call__(x, *shared)`
    returns `(x, out)`: `x` is passed to the next block, `shared` is the same for all, and `out` is stacked over blocks
    (None stays None). With `per_layer_input` it is `block.__call__(x, own, shared)`, `own` being the block's slice of a
    tree with a leading axis of layers.
    """
    policy = jax.checkpoint_policies.save_only_these_names(RESIDUALS)
    body = nn.remat(block, prevent_cse=not compute.loops, policy=policy) if compute.remat else block
    if not compute.scan_layers:
        return lambda *fields, name=None: UnrolledStack(partial(body, *fields), length, per_layer_input, name=name)
    axes = (0, nn.broadcast) if per_layer_input else nn.broadcast
    return nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=axes,
        length=length,
        unroll=1 if compute.loops else length,
    )


class UnrolledStack(nn.Module):
    """Stack of layers without a loop; each layer's parameters are a subtree, named "0", "1" and so on.

    A CPU copies each layer's slice out of a stacked leaf before multiplying by it; separate leaves avoid the copy, at
    the cost of compiling every layer. The layers share one traced function, which the compiler inlines.
    """

    block: Callable[..., nn.Module]
    length: int
    per_layer_input: bool

    @nn.compact
    def __call__(self, x: PyTree, *args: PyTree) -> tuple[PyTree, PyTree]:
        """Applies all blocks, as the scanned stack does."""
        outs = []
        for i in range(self.length):
            own = [jax.tree.map(lambda leaf, i=i: leaf[i], args[0])] if self.per_layer_input else []
            inputs = (x, *own, *args[len(own) :])
            if self.is_initializing():
                x, out = self.block(name=str(i))(*inputs)
            else:
                x, out = _one_layer(self.block(parent=None), platform(), self.variables["params"][str(i)], *inputs)
            outs.append(out)
        return x, jax.tree.map(lambda *layers: jnp.stack(layers), *outs)


@partial(jax.jit, static_argnums=(0, 1))
def _one_layer(block: nn.Module, _platform: str, params: Params, *inputs: PyTree) -> tuple[PyTree, PyTree]:
    """Applies a block with its parameters; `_platform` serves only as part of the trace cache's key."""
    return block.apply({"params": params}, *inputs)


def unstack(params: Params) -> Params:
    """Converts stacked parameters to those of `scan_layers=False`, where every layer is a subtree."""
    leaves: Params = {}
    for path, leaf in flatten(params).items():
        if match := STACKED.match(path):
            inside = path[match.end() :]
            leaves |= {f"{match[0]}{i}/{inside}": leaf[i] for i in range(leaf.shape[0])}
        else:
            leaves[path] = leaf
    return unflatten(leaves)


def init_params(model: nn.Module, key: jax.Array) -> Params:
    """Returns random parameters, traced with the model's `example()` inputs."""
    return model.init(key, *model.example())["params"]


def abstract_params(model: nn.Module) -> Params:
    """Returns shapes and dtypes of a model's parameters without allocating; cached if the model can be hashed."""
    try:
        hash(model)
    except TypeError:  # one of its fields is a dict
        return _traced_shapes.__wrapped__(model)
    return jax.tree.map(lambda leaf: leaf, _traced_shapes(model))


@lru_cache(maxsize=32)
def _traced_shapes(model: nn.Module) -> Params:
    """Returns the cached tree itself, which callers must not change."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
