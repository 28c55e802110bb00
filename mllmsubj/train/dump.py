"""How a run ends badly: what it leaves to look at, and not later than it must."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from mllmsubj.data.batch import Rows
from mllmsubj.train.state import TrainState


def write(workdir: Path, step: int, state: TrainState, batch: Rows) -> Path:
    """State (orbax) and this process's part of the batch (npz) of a step, to be looked at; returns the folder."""
    folder = workdir.absolute() / "nonfinite" / f"step_{step}"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state, force=True)
    arrays = {
        name: np.concatenate([np.asarray(shard.data) for shard in getattr(batch, name).addressable_shards])
        for name in sorted(vars(batch))
        if isinstance(getattr(batch, name), jax.Array)
    }
    np.savez(folder / f"batch_{jax.process_index()}.npz", allow_pickle=False, **arrays)
    return folder


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Ends the process, as SIGTERM would have, if the body takes longer: a half-written save is never picked up."""

    def end() -> None:
        print(f"mllmsubj: the save took longer than {seconds:g} s of grace; the one before it stays", file=sys.stderr)
        os._exit(128 + signal.SIGTERM)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
