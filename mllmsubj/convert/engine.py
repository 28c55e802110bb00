"""One engine for every source: a table of entries says where each tensor of a file goes in our tree.

A table is built from a model's sizes, so it names every tensor exactly, in both directions; anything left
over on either side is an error, and all errors are reported together.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from einops import rearrange
from safetensors import SafetensorError, safe_open

from mllmsubj.errors import UserError
from mllmsubj.sharding import flatten, unflatten
from mllmsubj.typing import Params

T = TypeVar("T")

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "linear": lambda x: x.T,  # [out, in] -> [in, out]
    "conv": lambda x: rearrange(x, "o i h w -> h w i o"),
}
"""Named transforms from a PyTorch tensor's layout to ours."""


@dataclass(frozen=True)
class Entry:
    """One tensor: its name in the source, its path here, and how it is laid out."""

    source: str
    target: str
    layout: str = "same"
    index: int | None = None
    """Row of the stacked leaf, where `target` is a stack of layers."""
    axis: int = 0
    """Axis of the stack."""


Table = list[Entry]


def linear(source: str, target: str, bias: bool = True) -> Table:
    """`source`.weight/.bias -> `target`/kernel, /bias."""
    return [Entry(f"{source}.weight", f"{target}/kernel", "linear"), *_bias(source, target, bias)]


def conv(source: str, target: str) -> Table:
    """A 2D convolution with bias."""
    return [Entry(f"{source}.weight", f"{target}/kernel", "conv"), *_bias(source, target, True)]


def norm(source: str, target: str, bias: bool = False) -> Table:
    """`source`.weight/.bias -> `target`/scale, /bias."""
    return [Entry(f"{source}.weight", f"{target}/scale"), *_bias(source, target, bias)]


def repeat(length: int, source: str, target: str, entries: Iterable[Entry], kernel_axis: int = 0) -> Table:
    """The entries of one layer for `length` layers: '{i}' in `source` counts them, `target` stacks them.

    Layers come first in every leaf; `kernel_axis` says where else they are in kernels.
    """

    def axis(entry: Entry) -> int:
        return kernel_axis if entry.target.endswith("/kernel") else 0

    return [
        replace(
            entry, source=source.format(i=i) + entry.source, target=target + entry.target, index=i, axis=axis(entry)
        )
        for entry in entries
        for i in range(length)
    ]


def inside(source: str, target: str, entries: Iterable[Entry]) -> Table:
    """The same entries under a prefix on either side."""
    return [replace(entry, source=source + entry.source, target=target + entry.target) for entry in entries]


def _bias(source: str, target: str, present: bool) -> Table:
    return [Entry(f"{source}.bias", f"{target}/bias")] if present else []


def read_config(folder: str | Path) -> dict[str, Any]:
    """The folder's `config.json`; a key that it lacks is a UserError where it is asked for."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{path} is not there; give the folder that a diffusers or transformers model was saved in")

    class Section(dict):
        def __missing__(self, key: str) -> None:
            raise UserError(
                f"{path} has no {key!r}; it is not the config of this model, or of a version not known here"
            )

    try:
        return json.loads(path.read_text(), object_hook=Section)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def sizes(cls: type[T], raw: dict[str, Any]) -> T:
    """A model's dataclass of sizes from a `read_config` that calls them by the same names."""
    values = {field.name: raw[field.name] for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


class TensorFiles(Mapping[str, np.ndarray]):
    """The tensors of a folder, single or sharded safetensors, read one at a time."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            pickled = [path.name for path in self.folder.glob("*.bin")]
            hint = f" ({pickled[0]} is a pickle: save it again with safe_serialization=True)" if pickled else ""
            raise UserError(f"{self.folder} holds no .safetensors file{hint}")
        self._file_of: dict[str, Path] = {}
        for path in files:
            try:
                with safe_open(path, framework="numpy") as handle:
                    self._file_of.update(dict.fromkeys(handle.keys(), path))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} cannot be read as safetensors: {error}") from None
        self._check_index()

    def _check_index(self) -> None:
        for path in self.folder.glob("*.safetensors.index.json"):
            missing = set(json.loads(path.read_text())["weight_map"].values()) - {
                f.name for f in self._file_of.values()
            }
            if missing:
                raise UserError(f"{path} names shards that are not there: {', '.join(sorted(missing))}")

    def __getitem__(self, name: str) -> np.ndarray:
        with safe_open(self._file_of[name], framework="numpy") as handle:
            return handle.get_tensor(name)

    def __iter__(self):
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def convert(
    tensors: Mapping[str, np.ndarray], table: Table, expected: Params, where: str, ignored: Set[str] = frozenset()
) -> Params:
    """Our tree of numpy arrays from a source's tensors.

    `expected` is the tree of shapes and dtypes that the model wants (`abstract_params`), `ignored` names tensors
    that a source may hold and that are no parameters. Raises UserError, with everything that is wrong, where a
    tensor is missing, left over, or of another shape.
    """
    shapes = dict(flatten(expected))
    sources = {entry.source for entry in table}
    problems = [f"missing tensor {name!r}" for name in sorted(sources - set(tensors))]
    problems += [f"unexpected tensor {name!r}" for name in sorted(set(tensors) - sources - ignored)]
    problems += [f"nothing fills {path!r}" for path in sorted(set(shapes) - {entry.target for entry in table})]
    _raise(problems, where)

    leaves: dict[str, np.ndarray] = {}
    for entry in table:
        tensor, leaf = LAYOUTS[entry.layout](tensors[entry.source]), shapes[entry.target]
        want = leaf.shape if entry.index is None else tuple(np.delete(leaf.shape, entry.axis))
        if tensor.shape != want:
            problems.append(f"{entry.source!r} has shape {tensor.shape}, {entry.target!r} wants {want}")
        elif entry.index is None:
            leaves[entry.target] = np.ascontiguousarray(tensor)
        else:
            stacked = leaves.setdefault(entry.target, np.empty(leaf.shape, tensor.dtype))
            stacked[(slice(None),) * entry.axis + (entry.index,)] = tensor
    _raise(problems, where)
    return unflatten(leaves)


def load(folder: str | Path, table: Table, expected: Params) -> Params:
    """`convert` over a folder's tensors."""
    return convert(TensorFiles(folder), table, expected, str(folder))


def _raise(problems: list[str], where: str) -> None:
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UserError(f"{where} does not hold this model: {shown}")
