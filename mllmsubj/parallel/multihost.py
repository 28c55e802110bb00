"""Multi-process runs: initialization, and global batches from the rows of each process."""

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllmsubj.errors import UserError
from mllmsubj.typing import PyTree

T = TypeVar("T")

MESSAGE_BYTES = 4096
"""Maximum size of the message from the first process to the others."""
BATCH = PartitionSpec(("data", "fsdp"))


def start() -> None:
    """Joins this process to the others of its run, if there are any; call it before any other use of JAX.

    The environment variables JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    apply anywhere; on TPU VMs launch/run_worker.sh sets them. On GKE's TPUs JAX detects the processes. Raises UserError
    if the address is set without the other two.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        try:
            count, number = (int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        except (KeyError, ValueError) as error:
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers too: {error}"
            ) from error
        jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, number)
        if jax.default_backend() == "cpu":
            # Only process 0 uses the cache; its cached program and a newly compiled one of another process deadlock.
            jax.config.update("jax_enable_compilation_cache", False)
    elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize()


def process_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Returns the indices of the rows of a batch that are on this process's devices, in order."""
    places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values() if index is not None]))


def make_global_batch(batch: PyTree, rows: np.ndarray, batch_size: int, mesh: Mesh) -> PyTree:
    """Returns the global batch, sharded over the mesh, from each process's own `rows` of it (leading axis)."""
    sharding = NamedSharding(mesh, BATCH)

    def leaf(own: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            first, last, _ = index[0].indices(batch_size)
            start = int(np.searchsorted(rows, first))
            return own[start : start + last - first]

        return jax.make_array_from_callback((batch_size, *own.shape[1:]), sharding, part)

    return jax.tree.map(leaf, batch)


def on_first_process(action: Callable[[], T]) -> T:
    """Runs `action` on process 0 while the others wait; its result (short JSON) or error is shared with all."""
    if jax.process_count() == 1:
        return action()
    outcome: dict[str, Any] = {}
    failure: Exception | None = None
    if jax.process_index() == 0:
        try:
            outcome = {"value": action()}
        except Exception as error:
            outcome, failure = {"error": str(error)[:1000] or type(error).__name__}, error
    text = json.dumps(outcome, ensure_ascii=False).encode()
    message = multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(MESSAGE_BYTES), np.uint8))
    if failure is not None:
        raise failure
    outcome = json.loads(bytes(np.asarray(message, np.uint8)))
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]
