"""Conversion of tensors in files to parameters, by a table with one entry per tensor.

A table is built from a model's sizes, so it contains every tensor and every parameter exactly once. Anything left over
on either side is an error, and all errors are reported together.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from einops import EinopsError, rearrange
from safetensors import SafetensorError, safe_open

from mllmsubj.errors import CheckpointError, UserError
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params

T = TypeVar("T")

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "linear": lambda x: x.T,  # [out, in] -> [in, out]
    "conv": lambda x: rearrange(x, "o i h w -> h w i o"),
    "pixel": lambda x: rearrange(x, "o i 1 1 -> i o"),  # a 1 × 1 convolution, which is a linear projection
}
"""Named transforms from a PyTorch tensor's layout to ours."""


@dataclass(frozen=True)
class Entry:
    """One tensor: its name in the source, its parameter path, and its layout in the source (a key of `LAYOUTS`)."""

    source: str
    target: str
    layout: str = "same"
    index: int | None = None
    """Index of the layer if `target` is a stack of layers."""
    axis: int = 0
    """Axis of the stack."""
    rows: tuple[tuple[int, int], ...] = ()
    """Ranges (start, stop) of the source's first axis, concatenated in this order; empty means all of it."""
    height: int = 0
    """Length of that axis if `rows` is set; the entries of one source cover it exactly once."""


Table = list[Entry]


def linear(source: str, target: str, bias: bool = True) -> Table:
    """Returns entries of a linear layer: `source`.weight/.bias -> `target`/kernel, /bias."""
    return [Entry(f"{source}.weight", f"{target}/kernel", "linear"), *_bias(source, target, bias)]


def conv(source: str, target: str) -> Table:
    """Returns entries of a 2D convolution with bias."""
    return [Entry(f"{source}.weight", f"{target}/kernel", "conv"), *_bias(source, target, True)]


def norm(source: str, target: str, bias: bool = False) -> Table:
    """Returns entries of a norm: `source`.weight/.bias -> `target`/scale, /bias."""
    return [Entry(f"{source}.weight", f"{target}/scale"), *_bias(source, target, bias)]


def repeat(length: int, source: str, target: str, entries: Iterable[Entry], kernel_axis: int = 0) -> Table:
    """Repeats the entries of one layer for `length` layers: '{i}' in `source` is the layer, `target` is the stack.

    The layer axis is the first of every leaf, except for kernels, where it is `kernel_axis`.
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
    """Returns the entries with a prefix on source and target."""
    return [replace(entry, source=source + entry.source, target=target + entry.target) for entry in entries]


def _bias(source: str, target: str, present: bool) -> Table:
    return [Entry(f"{source}.bias", f"{target}/bias")] if present else []


def config_path(where: str | Path) -> Path:
    """Returns the path of `config.json` in a folder, or next to a file; it may not exist."""
    return (Path(where).parent if Path(where).is_file() else Path(where)) / "config.json"


def read_config(folder: str | Path, name: str = "config.json") -> dict[str, Any]:
    """Reads the folder's `config.json`; looking up a key that it lacks raises UserError."""
    path = config_path(folder).with_name(name)
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not there; give the folder that a diffusers or transformers model was saved in"
        )

    class Section(dict[str, Any]):
        def __missing__(self, key: str) -> None:
            raise CheckpointError(
                f"{path} has no {key!r}; it is not the config of this model, or of a version not known here"
            )

    try:
        return json.loads(path.read_text(), object_hook=Section)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def sizes(cls: type[T], raw: dict[str, Any]) -> T:
    """Returns a model's dataclass of sizes from a config (`read_config`) whose keys are its field names."""
    values = {field.name: raw[field.name] for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


class TensorFiles(Mapping[str, np.ndarray]):
    """Tensors of a safetensors file, or of all such files of a folder, read one at a time."""

    def __init__(self, folder: str | Path) -> None:
        """Reads the headers; raises UserError for missing or unreadable files and missing shards."""
        self.folder = Path(folder)
        if not self.folder.exists():
            raise CheckpointError(f"{self.folder} is not there; give a .safetensors file or a folder with some")
        files = [self.folder] if self.folder.is_file() else sorted(self.folder.glob("*.safetensors"))
        if not files:
            pickled = [path.name for path in self.folder.glob("*.bin")]
            hint = f" ({pickled[0]} is a pickle: save it again with safe_serialization=True)" if pickled else ""
            raise CheckpointError(f"{self.folder} contains no .safetensors file{hint}")
        self._file_of: dict[str, Path] = {}
        self.metadata: dict[str, str] = {}
        """Metadata of the headers of all files."""
        for path in files:
            self._open(path)
        self._check_index()

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, framework="numpy") as handle:
                names = set(handle.keys())
                self.metadata |= handle.metadata() or {}
        except (SafetensorError, OSError) as error:
            with path.open("rb") as file:
                start = file.read(2)
            # A pickle's first two bytes, or those of the zip archive that torch.save puts it in.
            hint = "; it is a pickle, which is never loaded" if start == b"PK" or start[:1] == b"\x80" else ""
            raise CheckpointError(f"{path} cannot be read as safetensors: {error}{hint}") from error
        if twice := sorted(names & self._file_of.keys()):
            first = self._file_of[twice[0]]
            raise CheckpointError(
                f"{first} and {path.name} both contain {twice[0]!r}; name one of the files, or remove it"
            )
        self._file_of |= dict.fromkeys(names, path)

    def _check_index(self) -> None:
        for path in self.folder.glob("*.safetensors.index.json"):
            missing = set(json.loads(path.read_text())["weight_map"].values()) - {
                f.name for f in self._file_of.values()
            }
            if missing:
                raise CheckpointError(f"{path} lists missing shards: {', '.join(sorted(missing))}")

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads a tensor; raises UserError if numpy has no such dtype."""
        with safe_open(self._file_of[name], framework="numpy") as handle:
            try:
                return handle.get_tensor(name)
            except AttributeError:  # numpy has no such dtype
                kind = handle.get_slice(name).get_dtype()
        raise CheckpointError(
            f"{self._file_of[name]}: {name!r} is {kind}; give the file with bfloat16 or float32 weights"
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape from the header; raises UserError if there is no such tensor."""
        if name not in self:
            raise CheckpointError(f"{self.folder} has no tensor {name!r}")
        with safe_open(self._file_of[name], framework="numpy") as handle:
            return tuple(handle.get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names of the tensors."""
        return iter(self._file_of)

    def __len__(self) -> int:
        """Returns the number of tensors."""
        return len(self._file_of)


@dataclass(frozen=True)
class Source(Generic[T]):
    """Model in files: its sizes, its tensors, and the arguments of `convert` for them."""

    config: T
    tensors: Mapping[str, np.ndarray]
    table: Table
    expected: Params
    where: str
    ignored: Set[str] = frozenset()

    def load(self) -> tuple[T, Params]:
        """Returns sizes and parameters, all in memory."""
        return self.config, convert(self.tensors, self.table, self.expected, self.where, self.ignored)


def convert(
    tensors: Mapping[str, np.ndarray], table: Table, expected: Params, where: str, ignored: Set[str] = frozenset()
) -> Params:
    """Converts a source's tensors to a tree of parameters (numpy arrays in the source's dtypes).

    `expected` is the tree of the model's shapes and dtypes (`abstract_params`); `ignored` contains the names of tensors
    that a source may have and that are not parameters. Raises UserError with all problems if a tensor is missing, left
    over, or of another shape.
    """
    shapes = flatten(expected)
    refuse(unmatched(tensors, table, shapes, ignored), where)

    problems: list[str] = []
    leaves: dict[str, np.ndarray] = {}
    for entry in table:
        source, leaf = tensors[entry.source], shapes[entry.target]
        try:
            tensor = taken(entry, source)
        except UserError as error:
            problems.append(str(error))
            continue
        if problem := misfit(entry, tensor, leaf.shape):
            problems.append(problem)
        elif entry.index is None:
            leaves[entry.target] = np.ascontiguousarray(tensor)
        else:
            stacked = leaves.setdefault(entry.target, np.empty(leaf.shape, tensor.dtype))
            stacked[(slice(None),) * entry.axis + (entry.index,)] = tensor
    refuse(problems, where)
    return unflatten(leaves)


def unmatched(tensors: Iterable[str], table: Table, paths: Iterable[str], ignored: Set[str] = frozenset()) -> list[str]:
    """Returns a message for all tensors and paths that are missing, left over or used twice."""
    names, sources = set(tensors), {entry.source for entry in table}
    problems = [f"missing tensor {name!r}" for name in sorted(sources - names)]
    problems += [f"unexpected tensor {name!r}" for name in sorted(names - sources - ignored)]
    problems += [f"no tensor for parameter {path!r}" for path in sorted(set(paths) - {entry.target for entry in table})]
    return problems + _badly_shared(table)


def _badly_shared(table: Table) -> list[str]:
    """Returns a message for all sources whose rows are not used exactly once."""
    shares: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    heights: dict[str, int] = {}
    for entry in table:
        shares[entry.source] += entry.rows or [(0, 1)]
        heights[entry.source] = entry.height or 1
    problems = []
    for source, spans in shares.items():
        starts, stops = zip(*sorted(spans), strict=True)
        if (0, *stops) != (*starts, heights[source]):
            problems.append(f"rows of {source!r} are left over or used twice")
    return problems


def taken(entry: Entry, tensor: np.ndarray) -> np.ndarray:
    """Returns an entry's rows of its source tensor, in our layout; a view if possible.

    Raises UserError for a tensor whose shape does not fit the entry's rows or layout.
    """
    parts = [tensor[start:stop] for start, stop in entry.rows] or [tensor]
    try:
        if entry.rows and len(tensor) != entry.height:
            raise EinopsError
        return LAYOUTS[entry.layout](parts[0] if len(parts) == 1 else np.concatenate(parts))
    except EinopsError as error:
        raise CheckpointError(
            f"{entry.source!r} has shape {tensor.shape}, which does not fit {entry.target!r}"
        ) from error


def misfit(entry: Entry, tensor: np.ndarray, leaf: tuple[int, ...]) -> str | None:
    """Returns a message if the shape of a `taken` tensor is wrong; `leaf` is the shape of the whole leaf."""
    want = leaf if entry.index is None else leaf[: entry.axis] + leaf[entry.axis + 1 :]
    if tensor.shape == want:
        return None
    return f"{entry.source!r} has shape {tensor.shape}, but {entry.target!r} expects {want}"


def refuse(problems: list[str], where: str) -> None:
    """Raises UserError with the first eight problems, if there are any."""
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{where} does not contain this model: {shown}")
