"""Toyworld as a data source."""

import operator
from typing import SupportsIndex

import numpy as np

from mllmsubj.data.example import Example, Index
from mllmsubj.errors import UserError, nearest
from mllmsubj.toyworld.dataset import examples
from mllmsubj.toyworld.dataset.examples import Split


def open_toyworld(split: str, examples: int, size: int, seed: int) -> "ToyworldSource":
    """Opens toyworld, as an entry point of `mllmsubj.data.sources`; raises UserError for an unknown split."""
    if split not in list(Split):
        raise UserError(f"split {split!r} of toyworld{nearest(split, map(str, Split))}; it has {' and '.join(Split)}")
    return ToyworldSource(Split(split), examples, size, seed)


class ToyworldSource:
    """`length` examples of a split; pictures are 8-bit RGB arrays [size, size, 3]."""

    def __init__(self, split: Split, length: int, size: int = 64, seed: int = 0) -> None:
        """Initializes the source; `size`: side of a picture in pixels."""
        self.split, self.length, self.size, self.seed = split, length, size, seed

    def __len__(self) -> int:
        """Returns the number of examples."""
        return self.length

    def __getitem__(self, number: SupportsIndex, /) -> Example:
        """Returns a rendered example; raises IndexError outside [0, length)."""
        drawn = self.example(number)
        return Example(
            references=(drawn.reference.render(self.size),),
            prompt=drawn.prompt.text,
            target=drawn.target.render(self.size),
            subject=str(drawn.reference.identity.shape),
            origin=f"toyworld {self.split!s} {operator.index(number)}",
        )

    def example(self, number: SupportsIndex) -> examples.Example:
        """Returns the ground truth of an example; raises IndexError outside [0, length)."""
        index = operator.index(number)
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is outside of the {self.length} examples")
        return examples.example(self.split, index, self.seed)

    def index(self) -> Index:
        """Returns the size and number of references (1) of every example."""
        side = np.full(self.length, self.size, np.int32)
        return Index(side, side, np.ones(self.length, np.int32))

    def __repr__(self) -> str:
        """Returns all settings of the source; sources with equal text have equal examples."""
        return f"ToyworldSource({self.split!s}, {self.length}, size={self.size}, seed={self.seed})"
