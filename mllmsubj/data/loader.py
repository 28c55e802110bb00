"""Loader of batches, which threads prefetch; its state is one number, the step."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from mllmsubj.config.data import DataConfig
from mllmsubj.data.batch import Rows
from mllmsubj.data.example import Source, Unreadable
from mllmsubj.data.plan import BatchPlan, Bucket, PlannedBatch
from mllmsubj.data.transforms import RowReader
from mllmsubj.errors import DataError

logger = logging.getLogger("mllmsubj")

_MAX_UNREADABLE = 20
"""Maximum number of consecutive unreadable examples for one row of a batch."""
_CONCURRENT_BATCHES = 2
"""Number of batches read at once: the second one keeps all threads busy while the first one ends."""
_STEPS = 1 << 40
"""Upper bound on the steps of any run."""


@runtime_checkable
class RandomAccess(Protocol):
    """A dataset of any kind of examples; `data.example.Source` is that of images and a prompt."""

    def __getitem__(self, number: int, /) -> Any:
        """Returns an example; raises Unreadable if it cannot be read."""
        ...


@runtime_checkable
class Reader(Protocol):
    """A thread-safe writer of examples to rows of batches, such as `RowReader`."""

    @property
    def config(self) -> DataConfig:
        """Settings of the data."""
        ...

    def augmentation(self) -> str:
        """Returns a description of everything that a row depends on, besides its example and the plan."""
        ...

    def empty(self, bucket: Bucket, rows: int) -> Any:
        """Returns a batch (`Rows`) with uninitialized arrays."""
        ...

    def read(self, example: Any, bucket: Bucket, rng: np.random.Generator, batch: Any, row: int) -> None:
        """Fills all fields of a row but `example` and `skipped`; raises Unreadable if it cannot."""
        ...


class Loader:
    """Endless iterator over the batches of consecutive steps, each with this host's rows only.

    A batch depends on the plan, the reader and the step alone, not on threads or on the first step that was read.
    """

    def __init__(
        self, source: RandomAccess, plan: BatchPlan, reader: Reader, rows: np.ndarray, first_step: int = 0
    ) -> None:
        """Starts at `first_step`; `rows` are the rows of the batch that this host reads, which others may read too."""
        self.plan, self.rows = plan, rows
        self._source, self._reader = source, reader
        self.data_fingerprint = {"source": repr(source), "plan": plan.describe(), "augmentation": reader.augmentation()}
        """Description of the data, JSON-serializable; if it is equal, so are all batches."""
        self._warned: set[int] = set()
        self._lock = threading.Lock()
        config = reader.config
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="rows")
        options = grain.ReadOptions(min(_CONCURRENT_BATCHES, config.prefetch), config.prefetch)
        self._batches = iter(grain.MapDataset.range(_STEPS).map(self._read).to_iter_dataset(options))
        self._seek(first_step)

    def __iter__(self) -> Iterator[Any]:
        """Returns itself."""
        return self

    def __next__(self) -> Any:
        """Returns the next batch; raises UserError after too many unreadable examples in a row."""
        return next(self._batches)

    @property
    def step(self) -> int:
        """Step of the next batch."""
        return self._batches.get_state()["next_index"]

    def state(self) -> dict[str, Any]:
        """Returns all that is needed to resume on any number of hosts; JSON-serializable."""
        return {"step": self.step, "data": self.data_fingerprint}

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes from a `state`, without reading earlier batches.

        Raises UserError if the data has changed, so that the batches would differ.
        """
        was = state.get("data", {})
        changed = [
            f"{name} was {was.get(name)} and is {now}"
            for name, now in self.data_fingerprint.items()
            if was.get(name) != now
        ]
        if changed:
            raise DataError(
                f"the data changed since step {state['step']}: {'; '.join(changed)}; put back what was there, or start "
                f"in another workdir"
            )
        self._seek(state["step"])

    def close(self) -> None:
        """Stops prefetching."""
        self._batches.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _seek(self, step: int) -> None:
        self._batches.set_state({"next_index": step})

    def _read(self, step: int) -> Rows:
        planned = self.plan.batch(step)
        batch = self._reader.empty(planned.bucket, len(self.rows))
        for _ in self._pool.map(partial(self._read_row, planned, batch), range(len(self.rows)), self.rows.tolist()):
            pass
        return batch

    def _read_row(self, planned: PlannedBatch, batch: Rows, place: int, row: int) -> None:
        """Reads row `row` of the global batch into row `place` of this host's batch."""
        number = int(planned.examples[row])
        for attempt in range(_MAX_UNREADABLE):
            rng = self.plan.generator(planned.step, row)
            try:
                self._reader.read(self._source[number], planned.bucket, rng, batch, place)
            except Unreadable as error:
                self._warn_once(number, error)
                last, number = error, self.plan.replacement(planned.step, row, attempt)
                continue
            batch.example[place], batch.skipped[place] = number, attempt
            return
        raise DataError(f"{_MAX_UNREADABLE} examples in a row cannot be used; the last: {last}")

    def _warn_once(self, number: int, error: Unreadable) -> None:
        """Logs a warning, once per example."""
        with self._lock:
            new = number not in self._warned
            self._warned.add(number)
        if new:
            logger.warning("skipped: %s", error)


def make_loader(
    source: Source, reader: RowReader, batch_size: int, rows: np.ndarray, seed: int, first_step: int = 0
) -> Loader:
    """Returns a loader of `source` with the settings of `reader`."""
    return Loader(source, BatchPlan(source.index(), reader.config, batch_size, seed), reader, rows, first_step)
