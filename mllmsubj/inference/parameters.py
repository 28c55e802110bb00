"""Parameters for inference: read, merged, quantized and unstacked a few at a time.

Peak memory is that of the result and of one group as it is stored; large groups come first, while little is kept.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mllmsubj.checkpoints.initial import trained_groups
from mllmsubj.config.schema import Experiment
from mllmsubj.convert import fold_lora
from mllmsubj.inference.offload import check_device_memory, group_bytes, is_read
from mllmsubj.models.layers import unstack
from mllmsubj.models.lora import LoRAConfig, is_lora, merge_lora
from mllmsubj.models.quantize import quantize_frozen
from mllmsubj.models.subject import SubjectModel, is_trained
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params

GROUP = 1 << 30
"""Bytes, as stored, of parameters that are processed together, unless one kernel and its adapter are larger."""

Adapter = tuple[LoRAConfig, Params, float]
"""A LoRA as `load_lora` returns it, and the weight that it is added with."""

_merged = jax.jit(merge_lora, static_argnums=1)
_unstacked = jax.jit(unstack)


def load(
    folder: Path, experiment: Experiment, mesh: Mesh, adapters: Sequence[Adapter] = ()
) -> tuple[SubjectModel, Params]:
    """Loads the inference model and parameters of a checkpoint, to the devices or, with `compute.offload`, to the host.

    Raises UserError for a folder whose parameters are not those of the config, and if a device has no room for them.
    """
    compute, offload = experiment.compute.resolve(), experiment.compute.offload
    stored = SubjectModel(experiment.model, compute).stacked
    check_device_memory(group_bytes(inference_shapes(stored), mesh), offload, _device_memory(mesh.devices.flat[0]))
    kept: dict[str, Any] = {}
    for group in trained_groups(folder, stored, stored.abstract_params(mesh), experiment.seed, groups(stored)):
        held = _convert(stored, unflatten(group), adapters)
        held = held if compute.scan_layers else _unstacked(held)
        kept |= flatten(jax.device_get(held) if offload else held)
        del group, held  # frees them before the next group is read
    return replace(inference_model(stored), compute=compute), unflatten(kept)


def inference_model(stored: SubjectModel) -> SubjectModel:
    """Returns the model that `load` returns, but with stacked layers."""
    return replace(stored, config=replace(stored.config, lora=None)) if _merges(stored) else stored


def inference_shapes(stored: SubjectModel) -> Params:
    """Returns shapes and dtypes of the parameters that `load` returns, but with stacked layers."""
    read = unflatten({path: leaf for path, leaf in flatten(stored.abstract_params()).items() if is_read(path)})
    return jax.eval_shape(partial(_convert, stored), read)


def groups(stored: SubjectModel) -> list[list[str]]:
    """Groups the paths of parameters that inference reads; a kernel and an adapter merged into it share a group."""
    units: defaultdict[str, list[str]] = defaultdict(list)
    sizes: defaultdict[str, int] = defaultdict(int)
    for path, leaf in flatten(stored.abstract_params()).items():
        if is_read(path):
            unit = path.rpartition("/")[0] if _merges(stored) else path
            units[unit].append(path)
            sizes[unit] += leaf.size * leaf.dtype.itemsize
    found: list[list[str]] = []
    size = GROUP
    for unit in sorted(units, key=sizes.__getitem__, reverse=True):  # the largest first, while few others are in memory
        if size + sizes[unit] > GROUP:
            found.append([])
            size = 0
        found[-1] += units[unit]
        size += sizes[unit]
    return found


def _convert(stored: SubjectModel, params: Params, adapters: Sequence[Adapter] = ()) -> Params:
    """Converts some of the parameters for inference; a kernel comes with the adapters that are merged into it.

    In 8 bits the checkpoint's own adapters stay beside the kernels, as in training: their changes are smaller than the
    steps of 8 bits. Those of `adapters` are merged before quantization.
    """
    if stored.config.lora is not None and _merges(stored):
        params = _merged(params, stored.config.lora)
    for config, factors, weight in adapters if "transformer" in params else ():
        kernels = {path.rpartition("/")[0] for path in flatten(params["transformer"]) if path.endswith("/kernel")}
        some = {path: leaf for path, leaf in flatten(factors).items() if path.rpartition("/")[0] in kernels}
        params = params | {"transformer": fold_lora(params["transformer"], config, unflatten(some), weight)}
    if not _merges(stored):
        params = quantize_frozen(params)
    narrow = stored.compute.dtype  # matrix factors are cast to it wherever they are used
    return unflatten(
        {p: x.astype(narrow) if is_trained(p) and _is_factor(p) else x for p, x in flatten(params).items()}
    )


def _is_factor(path: str) -> bool:
    return is_lora(path) or path.endswith("/kernel")


def _merges(stored: SubjectModel) -> bool:
    return stored.config.frozen_dtype != "int8"


def _device_memory(device: jax.Device) -> int | None:
    """Returns the bytes of a device's memory, or None if the backend does not report them."""
    return (device.memory_stats() or {}).get("bytes_limit")
