"""Validation of a source: reads every example, decodes every image, and reports statistics and errors."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from mllmsubj.data.example import Example, Source, Unreadable
from mllmsubj.data.pixels import decode, decode_mask

T = TypeVar("T")
MIN_MASK_BRIGHTNESS = 128
"""Minimum value of a mask's brightest pixel; a darker mask has no subject."""


@dataclass
class Report:
    """Statistics and errors of a source."""

    examples: int = 0
    broken: list[str] = field(default_factory=list)
    """Error messages of unusable examples, one line each, with the origin."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Number of readable examples by (width, height) of the target."""
    references: Counter[int] = field(default_factory=Counter)
    """Number of readable examples by number of references."""
    scores: dict[str, list[float]] = field(default_factory=dict)


def validate(source: Source, threads: int, advance: Callable[[], object]) -> Report:
    """Reads all examples and compares their target sizes with the index; `advance` is called once per example."""
    index, report = source.index(), Report()

    def read(number: int) -> tuple[Example, tuple[int, int]] | Unreadable:
        try:
            example = source[number]
            size = check_example(example)
            indexed = int(index.width[number]), int(index.height[number])
            if indexed != size:
                said = f"the index says {indexed[0]}x{indexed[1]}"
                raise Unreadable(
                    f"{example.origin}, target is {size[0]}x{size[1]}, {said}; correct its width and height"
                )
        except Unreadable as error:
            return error
        return example, size

    for result in in_order(read, range(len(source)), threads):
        report.examples += 1
        advance()
        if isinstance(result, Unreadable):
            report.broken.append(str(result))
            continue
        example, size = result
        report.sizes[size] += 1
        report.references[len(example.references)] += 1
        for name, score in example.scores.items():
            report.scores.setdefault(name, []).append(score)
    return report


def check_example(example: Example) -> tuple[int, int]:
    """Returns (width, height) of the target; raises Unreadable if an image is unusable or a mask is empty."""
    for i, reference in enumerate(example.references):
        decode(reference, f"{example.origin}, reference {i}")
    for i, mask in enumerate(example.masks):
        if mask is not None:
            brightest = int(np.asarray(decode_mask(mask, f"{example.origin}, mask {i}")).max())
            if brightest < MIN_MASK_BRIGHTNESS:
                raise Unreadable(f"{example.origin}, mask {i} shows no subject; its brightest pixel is {brightest}")
    return decode(example.target, f"{example.origin}, target").size


def in_order(work: Callable[[int], T], numbers: Iterable[int], threads: int) -> Iterator[T]:
    """Yields `work(number)` for each number, in order; threads compute a bounded number of results ahead."""
    pool = ThreadPoolExecutor(threads)
    ahead: deque[Future[T]] = deque()
    try:
        for number in numbers:
            ahead.append(pool.submit(work, number))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
