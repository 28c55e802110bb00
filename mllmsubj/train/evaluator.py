"""What an evaluator is."""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from mllmsubj.typing import Params

Value = float | np.ndarray | tuple[str, ...]
"""A number; pictures [n, height, width, 3] of 8 bits; or the text beside each of the pictures of the same name."""


@runtime_checkable
class Evaluator(Protocol):
    """Judges parameters; on several processes all run it, each getting the same values."""

    name: str
    """Of its section in the config's `evals`, too."""
    meanings: Mapping[str, str]
    """What each number, and each set of pictures, is: for people who read a report."""
    every_steps: int
    """Its cadence in training; it runs at the end, too."""
    examples: int
    """How many it judges by."""

    def run(self, params: Params) -> Iterator[tuple[str, Value]]:
        """(name, value) pairs, names as "loss/both".

        `params`: of the whole model, laid out as its `compute` wants them.
        """
        ...


def sort(
    values: Iterator[tuple[str, Value]],
) -> tuple[Mapping[str, float], Mapping[str, np.ndarray], Mapping[str, tuple[str, ...]]]:
    """Numbers, pictures and texts apart."""
    numbers: dict[str, float] = {}
    pictures: dict[str, np.ndarray] = {}
    texts: dict[str, tuple[str, ...]] = {}
    for name, value in values:
        if isinstance(value, np.ndarray):
            pictures[name] = value
        elif isinstance(value, tuple):
            texts[name] = value
        else:
            numbers[name] = value
    return numbers, pictures, texts
