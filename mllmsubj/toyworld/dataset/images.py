"""Single pictures of toyworld with the truth about them: what the parts of the tiny model are pretrained on."""

import operator
from typing import SupportsIndex

import numpy as np

from mllmsubj.data.example import Index
from mllmsubj.toyworld.dataset.examples import HeldOut, Picture, Split, held_out
from mllmsubj.toyworld.world.identity import random_identity
from mllmsubj.toyworld.world.scene import random_scene


class PictureSource:
    """`length` pictures of a split, any subject in any scene; the test split's subjects are those held out."""

    def __init__(
        self, split: Split, length: int, size: int, seed: int = 0, views: int = 1, pose_randomness: float = 1.0
    ) -> None:
        """`size`: pixels of a picture's side, for whoever renders them. `views`: pictures of each subject in a row.

        `pose_randomness`: of the first of these; see `random_scene`. The others stand in any pose.
        """
        self.split, self.length, self.size, self.seed, self.views = split, length, size, seed, views
        self.pose_randomness = pose_randomness

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: SupportsIndex, /) -> Picture:
        """The same on every machine; never one of another split. Raises IndexError outside [0, length)."""
        index = operator.index(number)
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is outside of the {self.length} pictures")
        own, first = self._drawn(index), index - index % self.views
        return own if first == index else Picture(self._drawn(first).identity, own.scene)

    def _drawn(self, index: int) -> Picture:
        rng = np.random.default_rng([self.seed, _PICTURES, list(Split).index(self.split), index])
        while True:
            identity = random_identity(rng)
            if (held_out(identity) is HeldOut.NOTHING) == (self.split is Split.TRAIN):
                return Picture(identity, random_scene(rng, 1.0 if index % self.views else self.pose_randomness))

    def index(self) -> Index:
        """Returns the size and number of references of every picture."""
        side = np.full(self.length, self.size, np.int32)
        return Index(side, side, np.ones(self.length, np.int32))

    def __repr__(self) -> str:
        views = f", views={self.views}" * (self.views > 1) + f", unusual={self.pose_randomness}" * (
            self.pose_randomness < 1.0
        )
        return f"PictureSource({self.split!s}, {self.length}, size={self.size}, seed={self.seed}{views})"


_PICTURES = 2
"""A word of the seed, so that these are not the subjects of `examples.example`, whose third word is an index."""
