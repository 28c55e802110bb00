"""The models to import: the folder of each, its tensors, and the files that each tensor is written to."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mllmsubj import convert
from mllmsubj.checkpoints.importing.leaves import LeafLayout
from mllmsubj.checkpoints.importing.tensors import DTYPES, Tensor, list_tensors
from mllmsubj.convert.engine import Entry, Source, misfit, refuse, taken, unmatched
from mllmsubj.errors import CheckpointError, UserError
from mllmsubj.parallel.sharding import parameter_specs
from mllmsubj.tree import flatten

OPENERS: dict[str, Callable[[str | Path], Source[Any]]] = {
    "mllm": convert.open_mllm,
    "transformer": convert.open_transformer,
    "vae": convert.open_vae,
    "clip": convert.open_clip_text,
}
"""Component of the model, which is also its flag -> function that opens a source of it."""
SUBFOLDERS = {"transformer": "transformer", "vae": "vae", "clip": "text_encoder"}
"""Component -> its subfolder in a FLUX folder."""
COMPONENT_BY_TYPE = {
    "internvl": "mllm",
    "internvl_chat": "mllm",
    "FluxTransformer2DModel": "transformer",
    "AutoencoderKL": "vae",
    "clip_text_model": "clip",
    "t5": "",
    "clip": "",
    "qwen2": "",
}
"""Class name or model type in a `config.json` -> the component's flag; empty if it is not a component."""
Destination = tuple[Entry, LeafLayout]


@dataclass(frozen=True)
class Model:
    """One model to import, whose names, shapes and dtypes are checked; no tensor data has been read."""

    role: str
    folder: Path
    config: Any
    tensors: dict[str, Tensor]
    """All tensors in its files, by name."""
    parts: dict[str, list[Destination]]
    """Tensor name -> the leaves that it is written to; an empty list for a tensor without parameters."""

    @property
    def leaves(self) -> list[LeafLayout]:
        """Leaves of the model, without repetition."""
        return list({leaf.path: leaf for parts in self.parts.values() for _, leaf in parts}.values())

    @property
    def files(self) -> dict[Path, list[Tensor]]:
        """Source file -> its tensors, in the order in which they are stored."""
        files: dict[Path, list[Tensor]] = defaultdict(list)
        for tensor in self.tensors.values():
            files[tensor.file].append(tensor)
        return dict(files)


def component_folder(role: str, folder: Path) -> Path:
    """Returns the folder of a component; `folder` may be that or the FLUX folder that contains it."""
    inside = folder / SUBFOLDERS.get(role, "")
    return inside if not (folder / "config.json").is_file() and (inside / "config.json").is_file() else folder


def open_model(role: str, folder: Path, dtype: np.dtype) -> Model:
    """Opens and checks one component; raises UserError, listing the problems, if the folder does not contain it."""
    _check_kind(role, folder)
    tensors = list_tensors(folder)
    source = OPENERS[role](folder)
    shapes = {path: leaf.shape for path, leaf in flatten(source.expected).items()}
    refuse(unmatched(tensors, source.table, shapes, source.ignored), str(folder))
    refuse(_unfit(source, tensors, shapes), str(folder))

    specs = flatten(parameter_specs({role: source.expected}))
    indices: dict[str, list[int | None]] = defaultdict(list)
    stacks = {entry.target: None if entry.index is None else entry.axis for entry in source.table}
    leaves = {
        path: LeafLayout.plan(f"{role}/{path}", shape, specs[f"{role}/{path}"], dtype, stacks[path])
        for path, shape in shapes.items()
    }
    parts: dict[str, list[Destination]] = {name: [] for name in tensors}
    for entry in source.table:
        parts[entry.source].append((entry, leaves[entry.target]))
        indices[entry.target].append(entry.index)
    for path, shape in shapes.items():
        stack = stacks[path]
        wanted = [None] if stack is None else list(range(shape[stack]))
        assert sorted(indices[path], key=lambda index: index or 0) == wanted, f"{path}: not one tensor for each layer"
    return Model(role, folder, source.config, tensors, parts)


def _unfit(source: Source[Any], tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    problems = [
        f"{tensors[name].file.name}: tensor {name!r} is {tensors[name].dtype}, not {' or '.join(DTYPES)}"
        for name in dict.fromkeys(entry.source for entry in source.table)
        if tensors[name].dtype not in DTYPES
    ]
    for entry in source.table:
        tensor = tensors[entry.source]
        # A broadcast scalar has the tensor's shape without its data, so nothing is read.
        try:
            problem = misfit(entry, taken(entry, np.broadcast_to(np.int8(0), tensor.shape)), shapes[entry.target])
        except UserError as error:
            problem = str(error)
        if problem:
            problems.append(f"{tensor.file.name}: {problem}")
    return problems


def _check_kind(role: str, folder: Path) -> None:
    """Raises UserError if the folder's `config.json` is that of another component."""
    try:
        raw = json.loads((folder / "config.json").read_text())
        kind = raw.get("_class_name") or raw.get("model_type")
    except (AttributeError, OSError, ValueError):  # the loaders report these errors in more detail
        return
    wanted = COMPONENT_BY_TYPE.get(kind, role)
    if wanted != role:
        hint = f"it belongs to --{wanted}" if wanted else "it is no part of this model"
        raise CheckpointError(f"--{role}={folder} holds {kind}, not {role} weights: {hint}")
