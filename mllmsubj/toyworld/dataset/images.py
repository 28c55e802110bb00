"""Single toyworld pictures with their attributes: the pretraining data of the tiny model's components."""

import operator
from typing import SupportsIndex

import numpy as np

from mllmsubj.data.example import Index
from mllmsubj.toyworld.dataset.examples import HeldOut, Picture, Split, held_out
from mllmsubj.toyworld.world.identity import random_identity
from mllmsubj.toyworld.world.scene import random_scene


class PictureSource:
    """`length` random pictures of a split; subjects of the test split are those held out of training."""

    def __init__(
        self, split: Split, length: int, size: int, seed: int = 0, views: int = 1, pose_randomness: float = 1.0
    ) -> None:
        """Initializes the source; nothing is rendered.

        `size`: side in pixels at which callers render the pictures. `views`: number of consecutive pictures of each
        subject. `pose_randomness`: for the first view, see `random_scene`; the other views have random poses.
        """
        self.split, self.length, self.size, self.seed, self.views = split, length, size, seed, views
        self.pose_randomness = pose_randomness

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return self.length

    def __getitem__(self, number: SupportsIndex, /) -> Picture:
        """Returns a picture, identical on every machine; raises IndexError outside [0, length)."""
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
        """Returns the size and number of references (1) of every picture."""
        side = np.full(self.length, self.size, np.int32)
        return Index(side, side, np.ones(self.length, np.int32))

    def __repr__(self) -> str:
        """Returns all settings of the source; sources with equal text have equal pictures."""
        views = f", views={self.views}" * (self.views > 1) + f", unusual={self.pose_randomness}" * (
            self.pose_randomness < 1.0
        )
        return f"PictureSource({self.split!s}, {self.length}, size={self.size}, seed={self.seed}{views})"


_PICTURES = 2
"""Constant in the seed that makes these subjects differ from those of `examples.example`."""
