"""Streaming reader of safetensors files: a header with the offset of each tensor, then the contiguous tensors.

Files are read into a buffer, not memory-mapped, since mapped pages count as used memory and are kept.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mllmsubj.errors import CheckpointError

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""Name in a safetensors header -> dtype, for the dtypes that weights may have."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MAX_HEADER_BYTES = 100_000_000
"""Maximum size of a header in bytes, a limit of the format."""
READ_BYTES = 8 << 20
"""Bytes per read; they are hashed while they are in the cache."""


@dataclass(frozen=True)
class Tensor:
    """Header entry of one tensor."""

    name: str
    file: Path
    dtype: str
    """Name in the header, such as "BF16"."""
    shape: tuple[int, ...]
    start: int
    """Offset in bytes from the start of the file."""
    stop: int


def list_tensors(source: Path) -> dict[str, Tensor]:
    """Returns name -> tensor for a folder's safetensors files or for one file, in the order of storage.

    Raises UserError for a pickle, for a file that is damaged or truncated, and for a duplicate tensor.
    """
    found: dict[str, Tensor] = {}
    for path in _files(source):
        for tensor in read_header(path):
            if (other := found.get(tensor.name)) is not None:
                raise CheckpointError(
                    f"tensor {tensor.name!r} is in both {other.file} and {path.name}; leave one of them in the folder"
                )
            found[tensor.name] = tensor
    return found


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise CheckpointError(
            f"{source} is not there; give the folder that a diffusers or transformers model was saved in"
        )
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    pickles = [path for path in (files if source.is_file() else sorted(source.iterdir())) if path.suffix in PICKLES]
    if pickles and (source.is_file() or not files):
        raise CheckpointError(
            f"{pickles[0]} is a pickle, which can run code and is never read; convert it where you trust it: "
            "load the model with its from_pretrained and save it with save_pretrained(FOLDER, safe_serialization=True)"
        )
    for index in source.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{index} is no index of shards; copy it again") from error
        if missing := sorted(named - {path.name for path in files}):
            raise CheckpointError(
                f"{index.name} names shards that are not in {source}: {', '.join(missing)}; copy them"
            )
    if not files:
        raise CheckpointError(
            f"{source} contains no .safetensors file; give the folder that the model's own files are in"
        )
    return files


def read_header(path: Path) -> list[Tensor]:
    """Returns a file's tensors in the order of their offsets; raises UserError if they do not fill the file exactly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(
                f"{path} is cut short or no safetensors file: its {size} bytes hold no header; copy it again"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = [
            Tensor(name, path, said["dtype"], tuple(said["shape"]), *(8 + length + at for at in said["data_offsets"]))
            for name, said in header.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its header is no list of tensors; copy it again") from error
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    at = 8 + length
    for tensor in tensors:
        bytes_each = np.dtype(DTYPES[tensor.dtype]).itemsize if tensor.dtype in DTYPES else None
        if tensor.start != at or (bytes_each and tensor.stop - at != prod(tensor.shape) * bytes_each):
            raise CheckpointError(
                f"{path} is damaged: tensor {tensor.name!r} does not lie where it should; copy it again"
            )
        at = tensor.stop
    if at != size:
        beyond = [tensor.name for tensor in tensors if tensor.stop > size]
        lost = f", and tensor {beyond[0]!r} is cut off" if beyond else ""
        raise CheckpointError(f"{path} has {size} bytes, its header says {at}{lost}; copy it again")
    return tensors


def stream(
    path: Path, tensors: list[Tensor], buffer: Callable[[Tensor], np.ndarray]
) -> Iterator[tuple[Tensor, np.ndarray, str]]:
    """Yields (tensor, its bytes, SHA-256 of the file up to the tensor's end), in one pass over the file.

    `buffer` allocates the array for a tensor's bytes. The last digest is that of the whole file.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        digest.update(file.read(tensors[0].start if tensors else 0))
        for tensor in tensors:
            data = buffer(tensor)
            for start in range(0, len(data), READ_BYTES):
                part = data.data[start : start + READ_BYTES]
                if file.readinto(part) != len(part):
                    raise CheckpointError(f"{path} became shorter while it was read, within tensor {tensor.name!r}")
                digest.update(part)
            yield tensor, data, digest.hexdigest()
            del data  # so that the consumer can free it while `buffer` waits for memory
