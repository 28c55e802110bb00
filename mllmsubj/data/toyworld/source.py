"""Examples with random access, as Grain's samplers read them."""

import operator
from typing import SupportsIndex, TypedDict

import numpy as np

from mllmsubj.data.toyworld.examples import Example, Split, example


class Sample(TypedDict):
    """One training example: pictures are 8-bit RGB [size, size, 3]."""

    reference: np.ndarray
    prompt: str
    target: np.ndarray


class ToyworldSource:
    """`length` examples of a split; a `grain.sources.RandomAccessDataSource` by its two methods."""

    def __init__(self, split: Split, length: int, size: int = 64, seed: int = 0):
        """`size`: pixels of a picture's side."""
        self.split, self.length, self.size, self.seed = split, length, size, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Raises IndexError outside [0, length)."""
        drawn = self.example(index)
        return {
            "reference": drawn.reference.render(self.size),
            "prompt": drawn.prompt.text,
            "target": drawn.target.render(self.size),
        }

    def example(self, index: SupportsIndex) -> Example:
        """The truth behind a sample."""
        number = operator.index(index)
        if not 0 <= number < self.length:
            raise IndexError(f"index {number} is outside of the {self.length} examples")
        return example(self.split, number, self.seed)

    def __repr__(self) -> str:
        """Grain tells sources apart by this when it resumes."""
        return f"ToyworldSource({self.split!s}, {self.length}, size={self.size}, seed={self.seed})"
