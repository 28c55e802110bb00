"""LoRA files of the FLUX transformer: loading from diffusers, PEFT, ComfyUI and kohya, saving for diffusers.

Projections have diffusers' names, with the prefix `transformer.`, `base_model.model.` or none, or black-forest-labs'
names, with the prefix `diffusion_model.`, `lora_unet_` (kohya, which replaces dots by underscores) or none.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mllmsubj.convert import flux, flux_original
from mllmsubj.convert.engine import Entry, Table, TensorFiles, refuse
from mllmsubj.convert.lora_scales import Scales
from mllmsubj.convert.renames import renamed
from mllmsubj.errors import CheckpointError
from mllmsubj.models.dit import FluxConfig, FluxTransformer
from mllmsubj.models.layers import abstract_params
from mllmsubj.models.lora import LoRAConfig, add_low_rank
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params

FILE = "pytorch_lora_weights.safetensors"
"""File name in diffusers."""
FILES = (FILE, "adapter_model.safetensors")
"""Names of the file in a folder; else its only .safetensors file is used."""

PREFIX = re.compile(r"^(base_model\.model\.)?(transformer\.|diffusion_model\.)?")
DOWN = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight")
UP = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight")
ALPHA = (".alpha",)
UNSUPPORTED_FORMATS = {".processor.": "XLabs' form", ".lokr_": "LoKr", ".hada_": "LoHa", "dora_scale": "DoRA"}
"""Part of a tensor's name -> unsupported kind of adapter that it identifies."""


@dataclass(frozen=True)
class _Adapter:
    """One adapter of one projection of one layer."""

    entry: Entry
    down: np.ndarray
    """[in, rank]."""
    up: np.ndarray
    """[rank, out]."""
    scale: float


def load_lora(path: str | Path, config: FluxConfig, foldable: bool = False) -> tuple[LoRAConfig, Params]:
    """Loads a LoRA for a transformer of these sizes, as stacked float32 leaves `lora_a`, `lora_b` next to the kernels.

    Layers and projections that the file does not adapt get zeros, which change nothing. If ranks or alphas differ
    between modules, adapters are zero-padded to the largest rank and scales are folded into `lora_b`.
    `foldable` also accepts projections for which `FluxTransformer` has no adapters (MLPs of the double blocks,
    modulation, embedders); the result is then for `fold_lora` only.
    Raises UserError for another model's LoRA, an unsupported format and unknown tensors.
    """
    file = _file(Path(path))
    adapters = _read(TensorFiles(file), file, config)
    rank = max(adapter.down.shape[1] for adapter in adapters)
    scales = {adapter.scale for adapter in adapters}
    shared = scales.pop() if len(scales) == 1 else 1.0
    targets = dict.fromkeys(adapter.entry.target.split("/")[-2] for adapter in adapters)
    lora = LoRAConfig(rank, shared * rank, tuple(targets))
    expected = flatten(abstract_params(FluxTransformer(config, lora=lora)))

    leaves = {path: np.zeros(leaf.shape, np.float32) for path, leaf in expected.items() if "/lora_" in path}
    lacking = set()
    for adapter in adapters:
        base, entry = adapter.entry.target.removesuffix("kernel"), adapter.entry
        layers = () if entry.index is None else (expected[entry.target].shape[entry.axis],)
        if f"{base}lora_a" not in leaves:
            lacking.add(entry.source.removesuffix(".weight"))
            leaves[f"{base}lora_a"] = np.zeros((*layers, len(adapter.down), rank), np.float32)
            leaves[f"{base}lora_b"] = np.zeros((*layers, rank, adapter.up.shape[1]), np.float32)
        at = ... if entry.index is None else entry.index
        width = adapter.down.shape[1]
        leaves[f"{base}lora_a"][at][:, :width] = adapter.down
        leaves[f"{base}lora_b"][at][:width] = adapter.up * np.float32(adapter.scale / shared)
    if lacking and not foldable:
        raise CheckpointError(
            f"{file} adapts {_some(lacking)}, which have no adapters here; generate with it (generate --lora), "
            "which merges it into the weights"
        )
    return lora, unflatten(leaves)


def fold_lora(params: Params, config: LoRAConfig, lora: Params, weight: float = 1.0) -> Params:
    """Returns a transformer's parameters with `weight` times the adapters of `load_lora` added to its kernels."""
    leaves, factors = flatten(params), flatten(lora)
    for path, down in factors.items():
        if path.endswith("/lora_a"):
            base = path.removesuffix("lora_a")
            # Kernels [in, layers, out]; all other stacks are [layers, in, out].
            layers_in_middle = base.startswith("modulation/") and down.ndim == 3
            kernel, up = leaves[f"{base}kernel"], factors[f"{base}lora_b"]
            leaves[f"{base}kernel"] = add_low_rank(kernel, down, up, weight * config.scale, layers_in_middle)
    return unflatten(leaves)


def save_lora(folder: Path, config: FluxConfig, lora: LoRAConfig, params: Params) -> None:
    """Writes a transformer's adapters for `FluxPipeline.load_lora_weights`; other leaves are omitted.

    alpha / rank is multiplied into `lora_B`, since some readers take alpha only from the header, others only from
    tensors, and without it they assume alpha / rank = 1 silently.
    """
    leaves, tensors = flatten(params), {}
    for entry in _projections(flux.table(config)):
        base, name = entry.target.removesuffix("kernel"), "transformer." + entry.source.removesuffix(".weight")
        if f"{base}lora_a" in leaves:
            down, up = (np.asarray(leaves[f"{base}lora_{part}"][entry.index]) for part in "ab")
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(down.T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(up.T * np.float32(lora.scale))
    save_file(tensors, folder / FILE, metadata={"format": "pt", "trained_alpha": f"{lora.alpha:g}"})


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    named = [path / name for name in FILES if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
    if len(named) != 1:
        what = f"several: {', '.join(file.name for file in named)}" if named else "none"
        raise CheckpointError(f"{path} should hold one LoRA, {' or '.join(FILES)}, and has {what}; name the file")
    return named[0]


def _read(tensors: TensorFiles, file: Path, config: FluxConfig) -> list[_Adapter]:
    """Returns the adapters of a file, one per layer and projection of our model."""
    known, scales, shapes = _modules(config), Scales(tensors, file), _kernels(config)
    names: defaultdict[str, dict[str, str]] = defaultdict(dict)
    unknown = []
    for name in tensors:
        module, part = _parsed(name)
        if module in known and part:
            names[module][part] = name
        else:
            unknown.append(name)
    _refuse_unknown(unknown, file)

    adapters, problems = [], []
    for module, parts in names.items():
        if missing := {"down", "up"} - set(parts):
            problems.append(f"{module!r} lacks its {missing.pop()} projection")
            continue
        down, up = (np.asarray(tensors[parts[part]], np.float32) for part in ("down", "up"))
        alpha = float(tensors[parts["alpha"]].astype(np.float32).item()) if "alpha" in parts else None
        first = known[module][0]
        wide, tall = shapes[first.target]
        tall = first.height or tall
        if down.ndim != 2 or up.ndim != 2 or (down.shape[1], up.shape) != (wide, (tall, len(down))):
            problems.append(f"{module!r} is {down.shape} and {up.shape}, not [rank, {wide}] and [{tall}, rank]")
            continue
        scale = scales(module, len(down), alpha)
        for entry in known[module]:
            rows = [up[start:stop] for start, stop in entry.rows] or [up]
            adapters.append(_Adapter(entry, down.T, np.concatenate(rows).T, scale))
    refuse(problems, str(file))
    if not adapters:
        raise CheckpointError(f"{file} contains no adapter")
    return adapters


def _parsed(name: str) -> tuple[str, str | None]:
    """Returns a tensor's module (a key of `_modules`) and its kind: "down", "up", "alpha" or None if unknown."""
    for part, suffixes in (("down", DOWN), ("up", UP), ("alpha", ALPHA)):
        for suffix in suffixes:
            if name.endswith(suffix):
                return PREFIX.sub("", name.removesuffix(suffix)), part
    return name, None


def _modules(config: FluxConfig) -> dict[str, Table]:
    """Returns, for each name that a projection may have, the entries of its kernels; several if it is fused."""
    table = _projections(flux.table(config))
    modules: defaultdict[str, Table] = defaultdict(list)
    for entry in table:
        modules[entry.source.removesuffix(".weight")].append(entry)
    for entry in renamed(table, flux_original.renames(config)):
        name = entry.source.removesuffix(".weight")
        modules[name].append(entry)
        modules["lora_unet_" + name.replace(".", "_")].append(entry)
    return modules


def _projections(table: Table) -> Table:
    return [entry for entry in table if entry.layout == "linear"]


def _kernels(config: FluxConfig) -> dict[str, tuple[int, ...]]:
    """Returns (in, out) of one layer for the path of each kernel."""
    shapes = flatten(abstract_params(FluxTransformer(config)))
    return {
        entry.target: tuple(
            size for axis, size in enumerate(shapes[entry.target].shape) if entry.index is None or axis != entry.axis
        )
        for entry in _projections(flux.table(config))
    }


def _refuse_unknown(names: list[str], file: Path) -> None:
    for mark, form in UNSUPPORTED_FORMATS.items():
        if any(mark in name for name in names):
            raise CheckpointError(
                f"{file} is {form}; only LoRA as diffusers, PEFT, ComfyUI and kohya save it can be loaded"
            )
    if names:
        raise CheckpointError(
            f"{file} has tensors that match no projection of a FLUX transformer of these sizes: {_some(names)}"
        )


def _some(names: set[str] | list[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")
