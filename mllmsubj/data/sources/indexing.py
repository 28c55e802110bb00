"""Construction of a source's index; threads read unknown sizes of targets from the headers of their files."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mllmsubj.data.example import Index, Unreadable

THREADS = 16
"""Number of threads that read headers; they mostly wait for a disk or a network."""
_PART = 256
"""Number of examples in one task of a thread."""


def make_index(
    sizes: Sequence[tuple[int, int]], references: Sequence[int], scores: Sequence[Mapping[str, float]]
) -> Index:
    """Returns an index from one entry per example; sizes are (width, height)."""
    wide = np.asarray(sizes, np.int32).reshape(-1, 2)
    names = sorted({name for each in scores for name in each})
    columns = {name: np.asarray([each.get(name, np.nan) for each in scores], np.float32) for name in names}
    return Index(wide[:, 0], wide[:, 1], np.asarray(references, np.int32), columns)


def read_sizes(size: Callable[[int], tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Returns `size(number)`, as (width, height), for all numbers below `count`; (0, 0) if it raises Unreadable."""

    def size_or_zero(number: int) -> tuple[int, int]:
        try:
            return size(number)
        except Unreadable:
            return 0, 0

    def part(start: int) -> list[tuple[int, int]]:
        return [size_or_zero(number) for number in range(start, min(start + _PART, count))]

    with ThreadPoolExecutor(THREADS) as pool:
        return [size for sizes in pool.map(part, range(0, count, _PART)) for size in sizes]


def check_index(number: int, length: int) -> int:
    """Returns the number; raises IndexError outside [0, length), which makes a source iterable."""
    if not 0 <= number < length:
        raise IndexError(f"index {number} is outside of the {length} examples")
    return number
