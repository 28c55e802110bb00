"""Assignment of examples to batches: a pure function of (index, settings, seed, step), equal on all hosts.

A bucket's examples form an endless stream of permutations, one per epoch. Its batch j is positions j·B … (j+1)·B of
the stream, across the ends of permutations, so no example is dropped and each occurs once per permutation, however
small the bucket. In epoch e a bucket of n examples has the batches ⌊e·n/B⌋ … ⌊(e+1)·n/B⌋, and the batches of all
buckets are shuffled together. Three examples a, b, c and B = 2:

    epoch  0      1      2
    stream b c a  a c b  c b a …
    batch  0   1    2    3
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from mllmsubj.config.data import DataConfig
from mllmsubj.data.example import Index
from mllmsubj.errors import DataError, nearest

T = TypeVar("T")

_ORDER, _STREAM, _ROW = range(3)
"""Purposes of random numbers; each is a word of the seed, so that their streams are independent."""


@dataclass(frozen=True, order=True)
class Bucket:
    """Target size and number of references, which all rows of a batch share."""

    height: int
    """Height of the target in pixels."""
    width: int
    references: int


@dataclass(frozen=True)
class PlannedBatch:
    """The examples of one step's batch."""

    step: int
    epoch: int
    bucket: Bucket
    examples: np.ndarray
    """[batch_size] int32: numbers in the source."""


class BatchPlan:
    """The batches of all steps, with random access; safe in threads."""

    def __init__(self, index: Index, config: DataConfig, batch_size: int, seed: int) -> None:
        """Raises UserError if the settings leave no example."""
        if batch_size < 1:
            raise DataError(f"config key train.batch_size is {batch_size}; it must be at least 1")
        self.batch_size, self.seed = batch_size, seed
        self._buckets, self._members = _sort(index, config)
        self._sizes = [len(members) for members in self._members]
        # Two of each are kept, since batches are prefetched across the end of an epoch.
        self._orders: _LruCache[tuple[np.ndarray, np.ndarray]] = _LruCache(2)
        self._streams = [_LruCache[np.ndarray](2) for _ in self._buckets]

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Buckets with at least one example, in order."""
        return self._buckets

    @property
    def examples(self) -> int:
        """Number of examples after filtering."""
        return sum(self._sizes)

    def batch(self, step: int) -> PlannedBatch:
        """Returns the batch of `step`, counted from 0."""
        epoch, k, number = self._find(step)
        return PlannedBatch(step, epoch, self._buckets[k], self._stream(k, number * self.batch_size, self.batch_size))

    def replacement(self, step: int, row: int, attempt: int) -> int:
        """Returns a substitute for an unreadable example: the same row of the bucket's batch `attempt` + 1 later."""
        _, k, number = self._find(step)
        return int(self._stream(k, (number + 1 + attempt) * self.batch_size + row, 1)[0])

    def generator(self, step: int, row: int) -> np.random.Generator:
        """Returns the random generator of one row, equal on all hosts."""
        return np.random.default_rng([self.seed, _ROW, step, row])

    def fingerprint(self) -> str:
        """Returns 16 hex digits that identify all batches; hosts compare them, since each reads its own index."""
        digest = hashlib.sha256(repr((self.batch_size, self.seed, self._buckets, self._sizes)).encode())
        for members in self._members:
            digest.update(members.data)
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """Returns a readable description that includes the fingerprint."""
        return f"{self.examples} examples in batches of {self.batch_size}, seed {self.seed} ({self.fingerprint()})"

    def _before(self, epoch: int) -> int:
        """Returns the number of batches in all epochs before `epoch`."""
        return sum(epoch * size // self.batch_size for size in self._sizes)

    def _find(self, step: int) -> tuple[int, int, int]:
        """Returns a step's epoch, bucket, and the number of its batch within the bucket."""
        if step < 0:
            raise IndexError(f"step {step}; they are counted from 0")
        low, high = 0, (step + 1 + len(self._sizes)) * self.batch_size // self.examples + 1
        while high - low > 1:  # _before(low) <= step < _before(high)
            middle = (low + high) // 2
            low, high = (middle, high) if self._before(middle) <= step else (low, middle)
        order, rank = self._orders.get(low, partial(self._order, low))
        place = step - self._before(low)
        k = int(order[place])
        return low, k, low * self._sizes[k] // self.batch_size + int(rank[place])

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bucket of each batch of an epoch, and the number of earlier batches of that bucket in it."""
        counts = [(epoch + 1) * n // self.batch_size - epoch * n // self.batch_size for n in self._sizes]
        order = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        np.random.default_rng([self.seed, _ORDER, epoch, 0]).shuffle(order)
        rank = np.empty_like(order)
        for k, count in enumerate(counts):
            rank[order == k] = np.arange(count)
        return order, rank

    def _stream(self, k: int, start: int, count: int) -> np.ndarray:
        """Returns `count` example numbers of a bucket's stream, from position `start`."""
        members, parts = self._members[k], []
        while count:
            epoch, place = divmod(start, len(members))
            part = self._streams[k].get(epoch, partial(self._shuffled, k, epoch))[place : place + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def _shuffled(self, k: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, _STREAM, epoch, k]).permutation(self._members[k])


class _LruCache(Generic[T]):
    """Thread-safe cache of the most recently used values; concurrent threads compute a value only once."""

    def __init__(self, keep: int) -> None:
        self._keep, self._lock = keep, threading.Lock()
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
            self._values.move_to_end(key)
            while len(self._values) > self._keep:
                self._values.popitem(last=False)
            return self._values[key]


def _sort(index: Index, config: DataConfig) -> tuple[tuple[Bucket, ...], list[np.ndarray]]:
    """Returns the non-empty buckets, in order, and the example numbers of each."""
    keep = (index.width > 0) & (index.height > 0) & (index.references > 0)
    for name, least in config.min_scores:
        keep &= _score(index.scores, name) >= least  # False for NaN
    numbers = np.flatnonzero(keep).astype(np.int32)
    if not len(numbers):
        filters = ", ".join(f"{name} >= {least:g}" for name, least in config.min_scores)
        why = f"data.min_scores ({filters}) leaves none" if filters else "none can be read"
        raise DataError(f"no example to train on: of {len(index.width)} in the source, {why}")

    aspect = np.log(index.height[numbers] / index.width[numbers])
    nearest_size, distance = np.zeros(len(numbers), np.int32), np.full(len(numbers), np.inf)
    for i, (height, width) in enumerate(config.sizes):
        other = np.abs(aspect - np.log(height / width))
        closer = other < distance
        nearest_size[closer], distance[closer] = i, other[closer]

    references = np.minimum(index.references[numbers], config.max_references)
    members = {}
    for i, (height, width) in enumerate(config.sizes):
        for count in range(1, config.max_references + 1):
            found = numbers[(nearest_size == i) & (references == count)]
            if len(found):
                members[Bucket(height, width, count)] = found
    buckets = tuple(sorted(members))
    return buckets, [members[bucket] for bucket in buckets]


def _score(scores: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    known = sorted(other for other, values in scores.items() if not np.isnan(values).all())
    if name in known:
        return scores[name]
    there = f"there are {', '.join(known)}{nearest(name, known)}" if known else "there are none at all"
    raise DataError(f"config key data.min_scores names {name!r}, a score that no example has; {there}")
