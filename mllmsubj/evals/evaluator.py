"""What an evaluator is."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

from mllmsubj.typing import Params


class Evaluator(Protocol):
    """Judges parameters; on several processes all run it, each getting the same numbers."""

    name: str
    every_steps: int
    """Its cadence in training; it runs at the end, too."""

    def run(self, params: Params) -> Iterator[tuple[str, float | np.ndarray]]:
        """(name, value) pairs, names as "loss/both": a number, or pictures [n, height, width, 3] of 8 bits.

        `params`: of the whole model, laid out as its `compute` wants them.
        """
        ...


def sort(values: Iterator[tuple[str, float | np.ndarray]]) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
    """Numbers and pictures apart."""
    numbers: dict[str, float] = {}
    pictures: dict[str, np.ndarray] = {}
    for name, value in values:
        if isinstance(value, np.ndarray):
            pictures[name] = value
        else:
            numbers[name] = value
    return numbers, pictures
