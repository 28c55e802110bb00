"""Parameters in Orbax's format, written layer by layer: one zarr array per leaf, one file per layer.

A layer's file is a zarr 3 shard: pieces (inner chunks) along the axis that `fsdp` splits, followed by their index, so
that a device reads its own pieces only. The files are not compressed, since weights hardly get smaller.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import PartitionSpec

from mllmsubj.tree import unflatten

MAX_PIECES = 64
MIN_PIECE_BYTES = 1 << 20
"""Minimum size of a piece in bytes; smaller ones would cost more in requests than they save."""
BLOCK = 256
"""Number of rows of a tensor that are transposed together; they fit in the cache, approximately."""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class LeafLayout:
    """Layout of one leaf's files."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stack: int | None
    """Axis of the layers; None if they are not stacked."""
    split: int
    """Axis along which a file is split into pieces."""
    pieces: int
    """Number of pieces in a file."""

    @classmethod
    def plan(
        cls, path: str, shape: tuple[int, ...], spec: PartitionSpec, dtype: np.dtype, stack: int | None
    ) -> "LeafLayout":
        """Chooses the largest number of pieces within the limits above: a power of two, to fit most meshes."""
        split = next((axis for axis, name in enumerate(spec) if name == "fsdp"), 0)
        layer = int(np.prod(shape)) * dtype.itemsize // (1 if stack is None else shape[stack])
        pieces = 1
        while split != stack and _divides(2 * pieces, shape[split]) and layer // (2 * pieces) >= MIN_PIECE_BYTES:
            pieces *= 2
        return cls(path, shape, dtype, stack, split, pieces)

    @property
    def folder(self) -> str:
        """Name of the array's folder in an Orbax checkpoint."""
        return self.path.replace("/", ".")

    @property
    def shard(self) -> tuple[int, ...]:
        """Shape of the part of the array in one file."""
        return tuple(1 if axis == self.stack else size for axis, size in enumerate(self.shape))

    @property
    def piece(self) -> tuple[int, ...]:
        """Shape of one piece of a file."""
        return tuple(size // self.pieces if axis == self.split else size for axis, size in enumerate(self.shard))

    def file(self, index: int | None) -> str:
        """Returns the relative path of the file of layer `index`, or of the whole leaf for None."""
        chunk = [str(index) if axis == self.stack else "0" for axis in range(len(self.shape))]
        return "/".join([self.folder, "c", *chunk])

    def metadata(self) -> dict[str, Any]:
        """Returns the contents of the array's `zarr.json`."""
        plain = [{"name": "bytes", "configuration": {"endian": "little"}}]
        pieces = {"chunk_shape": self.piece, "codecs": plain, "index_codecs": plain, "index_location": "end"}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape,
            "data_type": self.dtype.name,
            "fill_value": 0.0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.shard}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": [{"name": "sharding_indexed", "configuration": pieces}],
        }


def _divides(pieces: int, size: int) -> bool:
    return pieces <= MAX_PIECES and size % pieces == 0


def write_layer(path: Path, leaf: LeafLayout, layer: np.ndarray) -> tuple[int, str]:
    """Writes one file of a leaf, in the leaf's dtype; returns its size in bytes and its SHA-256.

    Raises ValueError if a value is not finite, OSError if the file cannot be written.
    """
    axis = leaf.split - (leaf.stack is not None and leaf.stack < leaf.split)
    digest, size, index = hashlib.sha256(), 0, []
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:

        def write(data: np.ndarray) -> int:
            raw = data.reshape(-1).view(np.uint8).data
            written = 0
            while written < len(raw):  # one call writes at most 2 GiB
                written += file.write(raw[written:])
            digest.update(raw)
            return written

        for part in np.split(layer, leaf.pieces, axis):
            index += [size, part.size * leaf.dtype.itemsize]
            size += write(_contiguous_copy(part, leaf.dtype))
        size += write(np.asarray(index, "<u8"))
    return size, digest.hexdigest()


def _contiguous_copy(part: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns a copy in C order and in `dtype`; raises ValueError if a value is not finite."""
    if part.dtype == dtype == BFLOAT16:
        part = part.view(np.uint16)  # numpy copies its own dtypes faster
    out = np.empty(part.shape, dtype).view(part.dtype if part.dtype == np.uint16 else dtype)
    if part.ndim == 2 and part.strides[0] < part.strides[1]:
        for start in range(0, part.shape[1], BLOCK):
            out[:, start : start + BLOCK] = part[:, start : start + BLOCK]
    else:
        out[...] = part
    if dtype == BFLOAT16:
        finite = not out.size or (out.view(np.uint16) & 0x7FFF).max() < 0x7F80  # ml_dtypes' isfinite is slow
    else:
        finite = bool(np.isfinite(out).all())
    if not finite:
        raise ValueError("holds NaN or infinity")
    return out


def make_params(folder: Path, leaves: Iterable[LeafLayout]) -> None:
    """Creates an Orbax checkpoint of these leaves, atomically; their layers are yet to be written.

    Orbax writes its metadata for arrays of one element, whose `zarr.json` is then replaced by that of each leaf.
    """
    draft, leaves = folder.with_name(folder.name + ".draft"), list(leaves)
    shutil.rmtree(draft, ignore_errors=True)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns that there is nothing to merge
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)) as checkpointer:
            tree = unflatten({leaf.path: np.zeros(1, leaf.dtype) for leaf in leaves})
            checkpointer.save(draft.absolute(), args=ocp.args.PyTreeSave(tree))
    finally:
        logging.set_verbosity(verbosity)
    for leaf in leaves:
        shutil.rmtree(draft / leaf.folder)
        (draft / leaf.folder).mkdir()
        (draft / leaf.folder / "zarr.json").write_text(json.dumps(leaf.metadata()))
    os.rename(draft, folder)
