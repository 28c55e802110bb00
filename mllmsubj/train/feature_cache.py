"""Cached features on disk: outputs of the frozen encoders, one safetensors file per row.

A file's name is the SHA-256 of all that the frozen encoders read of the row (after augmentation, so that a random crop
is a new row) and of the encoders themselves. A stored row is therefore never stale, and files may be deleted at any
time.

    FOLDER/ab/abcd….safetensors    the arrays of `CachedFeatures`, and `crc32`, their checksum
"""

import hashlib
import logging
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.config.schema import Experiment
from mllmsubj.data.batch import Batch
from mllmsubj.errors import UserError
from mllmsubj.io import replacing
from mllmsubj.parallel import multihost
from mllmsubj.train.features import (
    LATENTS,
    NULL,
    STATES,
    CachedFeatures,
    Encoded,
    FeatureEncoder,
    features_by_row,
)

log = logging.getLogger("mllmsubj")

VERSION = 2
"""Version of the files; must be raised when the code of the frozen encoders computes other features."""
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "U32": np.dtype(np.uint32)}
_BATCHES_BEHIND = 2
"""Batches that may wait to be written; they occupy device memory."""

Arrays = dict[str, np.ndarray]


class FeatureCache:
    """Features of rows that were encoded before.

    All processes call `find` for the same batches, and then the function that it returns.
    """

    def __init__(self, folder: Path, parts: Literal["latents", "all"], encoders: str, mesh: Mesh, threads: int) -> None:
        """Opens the folder; `encoders`: text that identifies the frozen encoders and all their inputs but the batch.

        Raises UserError if the folder cannot be created.
        """
        self._folder, self._states, self._mesh = folder, parts == "all", mesh
        self._names = (*LATENTS, *STATES) if self._states else LATENTS
        self._encoders = f"version {VERSION}, {parts}, {encoders}"
        self._null_key = self._key("null")
        self._null: np.ndarray | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"config key data.cache: cannot create {folder}: {checkpoint.reason(error)}") from error
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="cache")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="cache-writer")
        self._writing: deque[Future[None]] = deque()
        self._warned: set[str] = set()
        rows, whole = NamedSharding(mesh, multihost.BATCH), NamedSharding(mesh, PartitionSpec())
        shardings = dict.fromkeys(self._names, rows) | ({NULL: whole} if self._states else {})
        self._by_row = jax.jit(partial(features_by_row, states=self._states), out_shardings=shardings)

    def find(
        self, encoder: FeatureEncoder, batch: Batch, rows: np.ndarray, batch_size: int
    ) -> tuple[CachedFeatures | None, Callable[[Encoded], None] | None]:
        """Returns the cached features of a whole batch, on the mesh, if every row of every process is stored.

        Otherwise returns None, and a function that stores the features of the batch once they are computed.
        `batch`: this process's `rows` of it, on the host.
        """
        keys = tuple(self._readers.map(partial(self._row_key, encoder, batch), range(len(rows))))
        stored = list(self._readers.map(self._read, keys))
        if self._states and self._null is None:
            self._null = (self._read(self._null_key, (NULL,)) or {}).get(NULL)
        missing = {int(row): key for row, key, each in zip(rows, keys, stored, strict=True) if each is None}
        complete = not missing and not (self._states and self._null is None)
        if jax.process_count() > 1:
            complete = bool(np.all(multihost_utils.process_allgather(np.asarray(complete))))
        if not complete:
            return None, partial(self._store_missing, missing)
        own = {name: np.stack([row[name] for row in stored if row is not None]) for name in self._names}
        cached = multihost.make_global_batch(own, rows, batch_size, self._mesh)
        if self._null is not None:
            whole = NamedSharding(self._mesh, PartitionSpec())
            cached[NULL] = jax.make_array_from_callback(self._null.shape, whole, self._null.__getitem__)
        return cached, None

    def close(self) -> None:
        """Waits until every row is written, and stops the threads."""
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        while self._writing:
            self._writing.popleft().result()

    def _store_missing(self, missing: dict[int, str], encoded: Encoded) -> None:
        """Stores the rows that are missing (row of the batch -> its key), in the background."""
        # Blocks because simulated devices may deadlock when several programs with collectives run at once.
        features = jax.block_until_ready(self._by_row(encoded))
        self._writing.append(self._writer.submit(self._store, missing, features))
        while len(self._writing) > _BATCHES_BEHIND:
            self._writing.popleft().result()

    def _row_key(self, encoder: FeatureEncoder, batch: Batch, place: int) -> str:
        """Returns the key of one row: a hash of all that the frozen encoders read of it."""
        names = ["target"]
        if encoder.with_references:
            names.append("references")
        if self._states:
            names += ["input_ids", "attention_mask", "clip_ids", "tiles"]
        layout = f"{batch.text} {batch.images}" if self._states else ""
        return self._key(f"{' '.join(names)} {layout}", [getattr(batch, name)[place] for name in names])

    def _key(self, what: str, arrays: Sequence[np.ndarray] = ()) -> str:
        digest = hashlib.sha256(f"{self._encoders}\n{what}\n{[(x.shape, str(x.dtype)) for x in arrays]}\n".encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str, names: Sequence[str] = ()) -> Arrays | None:
        """Returns the arrays stored under a key, or None if there are none or their file is damaged."""
        path = self._path(key)
        try:
            stored = safetensors.deserialize(path.read_bytes())
            arrays = {
                name: np.frombuffer(each["data"], _DTYPES[each["dtype"]]).reshape(each["shape"])
                for name, each in stored
            }
            if arrays.pop("crc32", None) != _checksum(arrays) or set(arrays) != set(names or self._names):
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            self._warn_once(
                "damaged", f"cache file {path} cannot be used and is rewritten ({checkpoint.reason(error)})"
            )
            return None
        return arrays

    def _store(self, wanted: dict[int, str], features: dict[str, jax.Array]) -> None:
        rows: dict[str, Arrays] = {key: {} for key in wanted.values()}
        for name in self._names:
            for shard in features[name].addressable_shards:
                first, data = shard.index[0].start or 0, None
                for row in range(first, first + len(shard.data)):
                    if row in wanted and name not in rows[wanted[row]]:
                        data = np.asarray(shard.data) if data is None else data
                        rows[wanted[row]][name] = data[row - first]
        if self._states and self._null is None:
            rows[self._null_key] = {NULL: np.asarray(features[NULL].addressable_data(0))}
        for key, arrays in rows.items():
            self._write(key, arrays)

    def _write(self, key: str, arrays: Arrays) -> None:
        path = self._path(key)
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            path.parent.mkdir(exist_ok=True)
            with replacing(path, unique=True) as partial_path:
                partial_path.write_bytes(safetensors.numpy.save(arrays | {"crc32": _checksum(arrays)}))
        except OSError as error:  # a full disk is no reason to stop training
            self._warn_once(
                "full", f"cache {self._folder} cannot be written: {checkpoint.reason(error)}; training continues"
            )

    def _warn_once(self, kind: str, message: str) -> None:
        """Logs a warning, once of each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s", message)


def make_cache(experiment: Experiment, base: Path, encoder: FeatureEncoder, mesh: Mesh) -> FeatureCache | None:
    """Returns the cache that a config enables, or None; `base`: checkpoint of the frozen encoders."""
    data, model = experiment.data, experiment.model
    if not data.cache:
        return None
    encoders: tuple[Any, ...] = (
        checkpoint.fingerprint(base),
        *(model.mllm, model.vae, model.clip, encoder.model.compute.dtype),
        *(experiment.reference.mean, experiment.reference.std, encoder.null_ids, encoder.null_text),
    )
    return FeatureCache(Path(data.cache).expanduser(), data.cached_features, repr(encoders), mesh, data.threads)


def _checksum(arrays: Arrays) -> np.ndarray:
    """Returns the CRC-32 of all arrays in order of their names."""
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(arrays[name].reshape(-1).view(np.uint8).data, value)
    return np.asarray(value, np.uint32)
