"""Device mesh, table of parameter shardings, and `constrain` for activations.

The mesh axes are `data` (batch), `fsdp` (batch, and rows of every large parameter), `tensor` (heads, hidden units).
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllmsubj.errors import UserError
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Array, Params, PyTree

AXES = ("data", "fsdp", "tensor")

ACTIVATION_AXES: dict[str, str | tuple[str, ...] | None] = {
    "parts": None,
    "batch": ("data", "fsdp"),
    "seq": None,
    "embed": None,
    "heads": "tensor",
    "hidden": "tensor",
}
"""Logical name of an activation's axis -> the mesh axes that split it."""

_IN = PartitionSpec("fsdp", "tensor")  # [in, out] of a projection to heads or hidden units
_OUT = PartitionSpec("tensor", "fsdp")  # [in, out] of the projection back
_REPLICATED = PartitionSpec()

PARAMETER_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # Low-rank factors are split along the wide side, as their kernel is. `proj_out` is split along the rank: its rows
    # belong to two inputs, and shards of all rows would have to be redistributed for each.
    (r"transformer/single_blocks/(\d+/)?proj_out/lora_a", PartitionSpec(None, "fsdp")),
    (r".*/lora_a", PartitionSpec("fsdp", None)),
    (r".*/lora_b", PartitionSpec(None, "tensor")),
    # Projections, by their names in all models.
    (r".*/(to_q|to_k|to_v|add_q_proj|add_k_proj|add_v_proj|q_proj|k_proj|v_proj|to_gate)/kernel", _IN),
    (r".*/(to_out|to_add_out|o_proj|out_proj|attn/proj)/kernel", _OUT),
    (r".*/(gate_proj|up_proj|proj_mlp|ff_in|fc1)/kernel", _IN),
    (r".*/(down_proj|ff_out|fc2)/kernel", _OUT),
    (r"transformer/single_blocks/(\d+/)?proj_out/kernel", _OUT),
    (r"transformer/(x_embedder|context_embedder|proj_out|time_text_embed/.*|modulation/out)/kernel", _IN),
    (r"transformer/modulation/(double_img|double_txt|single)/kernel", PartitionSpec("fsdp", None, "tensor")),
    (r"(mllm/projector|dla)/.*(linear_1|linear_2|down|up)/kernel", _IN),
    (r"dla/.*/pool/kernel", _REPLICATED),
    (r"mllm/lm_head/kernel", _IN),
    (r".*/(embed_tokens|token_embedding)/embedding", PartitionSpec("tensor", "fsdp")),
    (r".*/(position_embedding|class_token|patch_embedding/kernel)", _REPLICATED),
    # Convolutions of the VAE: [height, width, in, out].
    (r"vae/.*(conv\w*)/kernel", PartitionSpec(None, None, None, "fsdp")),
    (r"(probe|seen)/.*", _REPLICATED),
    # Vectors are small, so they are replicated.
    (r".*/(bias|scale|kernel_scale|layer_scale\w*|layer_norms)", _REPLICATED),
)
"""Regex of the full path -> sharding of the trailing axes; leading layer axes are not split. First match wins."""

STACKED = re.compile(r"(^|.*/)(double_blocks|single_blocks|layers|blocks|refiner_blocks)/(?!\d)")
"""Subtrees whose leaves have a leading axis of layers, unless a number follows (unstacked layers)."""


SMALL, MIN_SLICES = 2**26, 4
"""An axis of a parameter of fewer than SMALL elements is not split if a chip would get fewer than FINEST slices: with
CLIP's in slices of three on 256 chips, libtpu compiles a program in forty seconds instead of four."""


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over all devices; one axis may be −1, which is inferred. Raises UserError if sizes do not fit."""
    devices = devices or jax.devices()
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or fixed < 1 or len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"mesh {sizes} does not fit {len(devices)} devices; set one axis to -1 and let the others divide the count"
        )
    for axis in free:
        sizes[axis] = len(devices) // fixed
    return jax.make_mesh(
        tuple(sizes.values()), AXES, devices=devices, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES)
    )


def constrain(x: Array, *names: str) -> Array:
    """Constrains the sharding of an activation by logical axis names; the identity if no mesh is set.

    An axis that the mesh does not divide is not split, so that eight chips can generate a single image.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, activation_spec(x.shape, *names))


def activation_spec(shape: tuple[int, ...], *names: str) -> PartitionSpec:
    """Returns the sharding of an activation of this shape on the current mesh; not split if none is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return PartitionSpec(*(None,) * len(names))
    spec = PartitionSpec(*(ACTIVATION_AXES[name] for name in names))
    return _drop_uneven_axes(spec, shape, dict(jax.sharding.get_abstract_mesh().shape))


def parameter_specs(params: Params) -> PyTree:
    """Returns the PartitionSpec of every array or ShapeDtypeStruct of a tree, independent of a mesh.

    Raises ValueError with all paths that match no rule or whose rule does not fit the number of axes.
    """
    problems: list[str] = []
    specs = {path: _spec(path, np.ndim(leaf), problems) for path, leaf in flatten(params).items()}
    if problems:
        raise ValueError("no sharding for: " + "; ".join(problems))
    return unflatten(specs)


def parameter_shardings(params: Params, mesh: Mesh) -> PyTree:
    """Returns the NamedSharding of every leaf; an axis is not split unevenly or too finely (see `MIN_SLICES`)."""

    def place(leaf: Any, spec: PartitionSpec) -> NamedSharding:
        least = MIN_SLICES if math.prod(leaf.shape) < SMALL else 1
        return NamedSharding(mesh, _drop_uneven_axes(spec, leaf.shape, dict(mesh.shape), least))

    return jax.tree.map(place, params, parameter_specs(params))


def sharded_shapes(params: Params, mesh: Mesh) -> Params:
    """Returns ShapeDtypeStructs of parameters, or of their shapes, with their `parameter_shardings`."""
    return with_sharding(params, parameter_shardings(params, mesh))


def shardings_of(tree: PyTree) -> PyTree:
    """Returns the sharding of every leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def with_sharding(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Returns ShapeDtypeStructs of arrays or shapes with the given shardings, for restoring or compiling."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def bytes_per_device(tree: PyTree) -> int:
    """Returns the bytes per device of arrays, or of shapes with shardings, without the compiler's padding."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)


def _spec(path: str, ndim: int, problems: list[str]) -> PartitionSpec:
    for pattern, spec in PARAMETER_RULES:
        if re.fullmatch(pattern, path):
            leading = 1 if STACKED.match(path) else 0
            if spec == _REPLICATED or len(spec) + leading == ndim:
                return spec if spec == _REPLICATED else PartitionSpec(*(None,) * leading, *spec)
            problems.append(f"{path} has {ndim} axes, rule {pattern!r} names {len(spec) + leading}")
            return _REPLICATED
    problems.append(f"{path} matches no rule")
    return _REPLICATED


def _drop_uneven_axes(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: dict[str, int], least: int = 1
) -> PartitionSpec:
    """Returns `spec` without the axes that give chips unequal numbers of slices, or fewer than `least`."""

    def keep(axis: str | tuple[str, ...] | None, size: int) -> str | tuple[str, ...] | None:
        names = (axis,) if isinstance(axis, str) else axis or ()
        slices, rest = divmod(size, math.prod(mesh[name] for name in names))
        return axis if rest == 0 and slices >= least else None

    return PartitionSpec(*(keep(axis, size) for axis, size in zip(spec, shape, strict=False)))
