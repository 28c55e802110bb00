"""Interface of evaluators."""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from mllmsubj.typing import Params

Value = float | np.ndarray | tuple[str, ...]
"""A number; images [n, height, width, 3] uint8; or one text for each of the images of the same name."""


@runtime_checkable
class Evaluator(Protocol):
    """Evaluates parameters; on several processes each runs it, and all get the same values."""

    name: str
    """Name of the evaluator."""
    meanings: Mapping[str, str]
    """Description of each number and each set of images, for readers of a report."""
    every_steps: int
    """Training steps between evaluations, which also run after the last step; 0: none during training."""
    examples: int
    """Number of examples that it evaluates."""

    def run(self, params: Params) -> Iterator[tuple[str, Value]]:
        """Yields (name, value) pairs, with names such as "loss/both".

        `params`: all parameters, in the layout that `Task.all_params` returns.
        """
        ...


def split_values(
    values: Iterator[tuple[str, Value]],
) -> tuple[Mapping[str, float], Mapping[str, np.ndarray], Mapping[str, tuple[str, ...]]]:
    """Splits values into numbers, images and texts, each by name."""
    numbers: dict[str, float] = {}
    images: dict[str, np.ndarray] = {}
    texts: dict[str, tuple[str, ...]] = {}
    for name, value in values:
        if isinstance(value, np.ndarray):
            images[name] = value
        elif isinstance(value, tuple):
            texts[name] = value
        else:
            numbers[name] = value
    return numbers, images, texts
