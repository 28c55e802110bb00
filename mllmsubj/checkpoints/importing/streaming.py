"""Streaming import of one model: each tensor is converted and written as soon as it has been read.

Memory is bounded by the tensors in flight (HELD bytes, or the largest tensor) and by copies of pieces of them.
"""

import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mllmsubj.checkpoints.importing.leaves import write_layer
from mllmsubj.checkpoints.importing.models import Model
from mllmsubj.checkpoints.importing.progress import ImportLog, WrittenFile
from mllmsubj.checkpoints.importing.tensors import DTYPES, Tensor, stream
from mllmsubj.convert.engine import taken
from mllmsubj.errors import CheckpointError

MAX_BUFFERED_BYTES = 512 << 20
"""Maximum bytes of tensors in memory, unless a single tensor is larger."""
WRITERS = 2
"""Number of threads that convert and write; another thread reads."""


def write_model(
    model: Model, folder: Path, progress: ImportLog, on_bytes_read: Callable[[int], object]
) -> dict[Path, str]:
    """Writes those layers of a model that `progress` lacks below `folder`; returns source file -> SHA-256.

    `on_bytes_read` is called with the number of bytes read for each tensor. Raises UserError if a source file has
    changed or is damaged, OSError if an output file cannot be written.
    """
    before = dict(progress.done)
    room = _MemoryBudget(max(MAX_BUFFERED_BYTES, *(tensor.stop - tensor.start for tensor in model.tensors.values())))
    running: deque[Future[None]] = deque()
    digests = {}
    with ThreadPoolExecutor(WRITERS) as pool:
        try:
            for path, tensors in model.files.items():
                for tensor, data, digest in stream(path, tensors, room.take):
                    _check_same(model, tensor, digest, before, folder)
                    running.append(pool.submit(_write, model, tensor, data, digest, folder, progress, room))
                    del data
                    while running[0].done() and len(running) > 1:
                        running.popleft().result()
                    on_bytes_read(tensor.stop - tensor.start)
                    digests[path] = digest
                _check_name(path, digests[path])
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return digests


class _MemoryBudget:
    """Memory budget for tensors, shared by the threads."""

    def __init__(self, size: int) -> None:
        self._left, self._changed = size, threading.Condition()

    def take(self, tensor: Tensor) -> np.ndarray:
        """Returns a buffer for a tensor; blocks until the budget allows it."""
        size = tensor.stop - tensor.start
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size
        return np.empty(size, np.uint8)

    def give(self, size: int) -> None:
        """Returns the bytes of a buffer that is no longer used to the budget."""
        with self._changed:
            self._left += size
            self._changed.notify()


def _write(
    model: Model, tensor: Tensor, data: np.ndarray, digest: str, folder: Path, progress: ImportLog, room: _MemoryBudget
) -> None:
    """Writes all files of a tensor."""
    try:
        for entry, leaf in model.parts[tensor.name]:
            name = f"params/{leaf.file(entry.index)}"
            if _is_kept(folder / name, progress.done.get(name)):
                continue
            array = data.view(DTYPES[tensor.dtype]).reshape(tensor.shape)
            try:
                written = write_layer(folder / name, leaf, taken(entry, array))
            except ValueError as error:
                raise CheckpointError(
                    f"{tensor.file}: tensor {tensor.name!r} {error}; the file is damaged, copy it again"
                ) from error
            progress.add(WrittenFile(name, *written, tensor.name, digest))
    finally:
        room.give(len(data))


def _is_kept(path: Path, done: WrittenFile | None) -> bool:
    """Returns whether a file of an interrupted import is complete and unchanged."""
    if done is None or not path.is_file() or path.stat().st_size != done.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == done.sha256


def _check_same(model: Model, tensor: Tensor, digest: str, before: dict[str, WrittenFile], folder: Path) -> None:
    """Raises UserError if the source, up to this tensor, differs from what an interrupted import has read."""
    for entry, leaf in model.parts[tensor.name]:
        done = before.get(f"params/{leaf.file(entry.index)}")
        if done is not None and (done.tensor, done.source_sha256) != (tensor.name, digest):
            raise CheckpointError(
                f"{tensor.file} changed since the import began, at or before tensor {tensor.name!r}; put back what it "
                f"was, or delete {folder.parent} to start again"
            )


def _check_name(path: Path, digest: str) -> None:
    """Raises UserError for a file in the Hub's cache, where names are SHA-256 digests, with another digest."""
    name = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", name) and name != digest:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is {digest}, and it was downloaded as {name}; download it again"
        )
