"""Identity of a subject: its shape, colors, texture and accessory, which do not depend on the scene."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

Rgb = tuple[int, int, int]


class Shape(StrEnum):
    """Kind of subject; its value is its noun in prompts."""

    DOG = "dog"
    CAT = "cat"
    RABBIT = "rabbit"
    BIRD = "bird"
    FISH = "fish"
    TURTLE = "turtle"
    MUG = "mug"
    TEAPOT = "teapot"
    ROBOT = "robot"
    CAR = "car"
    FLOWER = "flower"
    HOUSE = "house"


ANIMALS = frozenset({Shape.DOG, Shape.CAT, Shape.RABBIT, Shape.BIRD, Shape.FISH, Shape.TURTLE})
"""Shapes that prompts may call "the animal"."""


class Color(StrEnum):
    """Named color of a subject."""

    RED = "red"
    ORANGE = "orange"
    YELLOW = "yellow"
    GREEN = "green"
    TURQUOISE = "turquoise"
    BLUE = "blue"
    PURPLE = "purple"
    PINK = "pink"
    BROWN = "brown"
    WHITE = "white"


PALETTE: Mapping[Color, Rgb] = {
    Color.RED: (222, 44, 52),
    Color.ORANGE: (250, 136, 24),
    Color.YELLOW: (252, 218, 48),
    Color.GREEN: (58, 158, 62),
    Color.TURQUOISE: (64, 208, 200),
    Color.BLUE: (44, 92, 216),
    Color.PURPLE: (136, 62, 190),
    Color.PINK: (255, 152, 196),
    Color.BROWN: (124, 74, 38),
    Color.WHITE: (248, 246, 240),
}
"""Color -> 8-bit RGB in daylight."""


class Texture(StrEnum):
    """Pattern of the second color on the body; `HALVES` covers its lower part."""

    PLAIN = "plain"
    STRIPES = "stripes"
    SPOTS = "spots"
    CHECKS = "checks"
    HALVES = "halves"


class Accessory(StrEnum):
    """Accessory of the subject, in its accent color."""

    NONE = "none"
    HAT = "hat"
    CROWN = "crown"
    GLASSES = "glasses"
    SCARF = "scarf"
    BOW = "bow"


@dataclass(frozen=True)
class Identity:
    """A subject. Its colors differ from each other, and `accent` is None if and only if there is no accessory."""

    shape: Shape
    main: Color
    """Color of the body and head."""
    second: Color
    """Color of the texture and of small parts (ears, paws, roof, handle), visible with every texture."""
    texture: Texture
    accessory: Accessory
    accent: Color | None
    """Color of the accessory."""

    def __post_init__(self) -> None:
        """Raises ValueError if the colors repeat or the accent does not match the accessory."""
        if (self.accent is None) != (self.accessory is Accessory.NONE):
            raise ValueError(f"accessory {self.accessory} and accent {self.accent} do not go together")
        if self.main == self.second or self.accent in (self.main, self.second):
            raise ValueError(f"colours of one subject must differ: {self.main}, {self.second}, {self.accent}")

    @property
    def is_animal(self) -> bool:
        """Whether a prompt may call it "the animal"."""
        return self.shape in ANIMALS

    def replace(self, **changes: object) -> "Identity":
        """Returns this subject with some attributes changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def describe(self) -> str:
        """Returns a description with every attribute, such as "a red dog with blue stripes wearing a pink hat"."""
        patterned = "with {} halves" if self.texture is Texture.HALVES else f"with {{}} {self.texture}"
        detail = "with {} details" if self.texture is Texture.PLAIN else patterned
        article = "an" if self.main[0] in "aeiou" else "a"
        words = f"{article} {self.main} {self.shape} {detail.format(self.second)}"
        if self.accent is None:
            return words
        one = "" if self.accessory is Accessory.GLASSES else "an " if self.accent[0] in "aeiou" else "a "
        return f"{words} wearing {one}{self.accent} {self.accessory}"


def random_identity(rng: np.random.Generator) -> Identity:
    """Returns a random identity: each attribute uniform, colors without repetition."""
    main, second, accent = (list(Color)[i] for i in rng.permutation(len(Color))[:3])
    accessory = pick(rng, tuple(Accessory))
    return Identity(
        shape=pick(rng, tuple(Shape)),
        main=main,
        second=second,
        texture=pick(rng, tuple(Texture)),
        accessory=accessory,
        accent=None if accessory is Accessory.NONE else accent,
    )


def pick(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    """Returns a uniformly random element of a sequence."""
    return values[int(rng.integers(len(values)))]


def combination_is_held_out(identity: Identity) -> bool:
    """Returns whether no training picture has this shape with this main color: for each shape, one of ten colors."""
    shape, main = list(Shape).index(identity.shape), list(Color).index(identity.main)
    return (3 * shape + main) % len(Color) == 0


def identity_is_held_out(identity: Identity) -> bool:
    """Returns whether no training picture has exactly this identity: a tenth of them, by a hash of all attributes."""
    i = identity
    text = f"{i.shape}/{i.main}/{i.second}/{i.texture}/{i.accessory}/{i.accent}"
    return zlib.crc32(text.encode()) % 10 == 0
