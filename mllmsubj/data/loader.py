"""Source -> batches, read ahead by threads; where it stands is one number, the step."""

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
from mllmsubj.data.plan import Bucket, Plan, PlannedBatch
from mllmsubj.data.transforms import RowReader
from mllmsubj.errors import DataError

logger = logging.getLogger("mllmsubj")

_TRIES = 20
"""Examples in a row that may be unreadable for one row of a batch."""
_AT_ONCE = 2
"""Batches that are read at the same time: the second one keeps all threads busy while the first one ends."""
_STEPS = 1 << 40
"""More than any run has."""


@runtime_checkable
class Numbered(Protocol):
    """What examples of any kind come from; see `data.example.Source`, whose are pictures and a prompt."""

    def __getitem__(self, number: int, /) -> Any: ...


@runtime_checkable
class Reader(Protocol):
    """What fills rows of batches with such examples; safe in threads. See `RowReader`."""

    @property
    def config(self) -> DataConfig: ...

    def augmentation(self) -> str:
        """What a row depends on besides its example and the plan."""
        ...

    def empty(self, bucket: Bucket, rows: int) -> Any:
        """A batch (`Rows`) to be filled."""
        ...

    def read(self, example: Any, bucket: Bucket, rng: np.random.Generator, batch: Any, row: int) -> None:
        """Fills all of a row but `example` and `skipped`. Raises Unreadable."""
        ...


class Loader:
    """Batches of one step after the other, without end; each holds this host's rows only.

    What a batch holds depends on plan, reader and step alone: neither on threads nor on where reading began.
    """

    def __init__(self, source: Numbered, plan: Plan, reader: Reader, rows: np.ndarray, first_step: int = 0) -> None:
        """`rows`: which rows of the batch this host reads; several hosts may read the same one."""
        self.plan, self.rows = plan, rows
        self._source, self._reader = source, reader
        self.made_of = {"source": repr(source), "plan": plan.describe(), "augmentation": reader.augmentation()}
        """Equal where all batches are; JSON can hold it."""
        self._told: set[int] = set()
        self._lock = threading.Lock()
        config = reader.config
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="rows")
        options = grain.ReadOptions(min(_AT_ONCE, config.prefetch), config.prefetch)
        self._batches = iter(grain.MapDataset.range(_STEPS).map(self._read).to_iter_dataset(options))
        self._seek(first_step)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Raises UserError if a row finds only unreadable examples."""
        return next(self._batches)

    @property
    def step(self) -> int:
        """Of the next batch."""
        return self._batches.get_state()["next_index"]

    def state(self) -> dict[str, Any]:
        """All that is needed to go on, on any number of hosts; JSON can hold it."""
        return {"step": self.step, "data": self.made_of}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; no earlier batch is read.

        Raises UserError if the batches would be others from there on.
        """
        was = state.get("data", {})
        changed = [
            f"{name} was {was.get(name)} and is {now}" for name, now in self.made_of.items() if was.get(name) != now
        ]
        if changed:
            raise DataError(
                f"the data changed since step {state['step']}: {'; '.join(changed)}; put back what was there, or start "
                f"in another workdir"
            )
        self._seek(state["step"])

    def close(self) -> None:
        """Stops reading ahead."""
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
        """Row `row` of the whole batch into `place` of this host's part."""
        number = int(planned.examples[row])
        for attempt in range(_TRIES):
            rng = self.plan.generator(planned.step, row)
            try:
                self._reader.read(self._source[number], planned.bucket, rng, batch, place)
            except Unreadable as error:
                self._tell(number, error)
                last, number = error, self.plan.replacement(planned.step, row, attempt)
                continue
            batch.example[place], batch.skipped[place] = number, attempt
            return
        raise DataError(f"{_TRIES} examples in a row cannot be used; the last: {last}")

    def _tell(self, number: int, error: Unreadable) -> None:
        """Once an example."""
        with self._lock:
            new = number not in self._told
            self._told.add(number)
        if new:
            logger.warning("skipped: %s", error)


def make_loader(
    source: Source, reader: RowReader, batch_size: int, rows: np.ndarray, seed: int, first_step: int = 0
) -> Loader:
    """A loader of `source` by the reader's settings."""
    return Loader(source, Plan(source.index(), reader.config, batch_size, seed), reader, rows, first_step)
