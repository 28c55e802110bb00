"""Counts of what was asked of each image and of what a probe reads in it; pure functions of (examples, readings).

Readings are numbers of values, in the order of `ATTRIBUTES`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mllmsubj.toyworld import Example
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, IDENTITY_ATTRIBUTES, number
from mllmsubj.toyworld.world.scene import POSE_ATTRIBUTES, SCENE_ATTRIBUTES
from mllmsubj.typing import Bool, Float, Int

RECOLOURING = "recolouring"
"""Name for what prompts ask of the identity: main, second or accent color."""


@dataclass(frozen=True)
class Tally:
    """Counts for n images, one column per name."""

    names: tuple[str, ...]
    right: Int[np.ndarray, "n a"]
    evaluated: Int[np.ndarray, "n a"]

    def only(self, kept: Bool[np.ndarray, " n"]) -> "Tally":
        """Returns the counts of the images in `kept`; those of the others are 0."""
        return Tally(self.names, self.right * kept[:, None], self.evaluated * kept[:, None])

    def column(self, name: str) -> "Tally":
        """Returns the counts of one name."""
        at = [self.names.index(name)]
        return Tally((name,), self.right[:, at], self.evaluated[:, at])

    def concatenate(self, other: "Tally") -> "Tally":
        """Concatenates the columns of two tallies of the same images."""
        return Tally(
            self.names + other.names,
            np.concatenate([self.right, other.right], axis=1),
            np.concatenate([self.evaluated, other.evaluated], axis=1),
        )


def identity(examples: Sequence[Example], readings: Int[np.ndarray, "n attributes"]) -> Tally:
    """Counts the reference's attributes, except recolored ones and the accent of subjects without an accessory."""
    wanted = [
        {
            name: getattr(example.reference.identity, name)
            for name in IDENTITY_ATTRIBUTES
            if name not in dict(example.prompt.asks) and getattr(example.reference.identity, name) is not None
        }
        for example in examples
    ]
    return _compare(wanted, readings, IDENTITY_ATTRIBUTES)


def prompt(examples: Sequence[Example], readings: Int[np.ndarray, "n attributes"]) -> Tally:
    """Counts what the prompt asks of the scene and, as `RECOLOURING`, of the identity."""
    wanted = [dict(example.prompt.asks) for example in examples]
    scene = _compare([_part(asks, SCENE_ATTRIBUTES) for asks in wanted], readings, tuple(SCENE_ATTRIBUTES))
    colours = _compare([_part(asks, IDENTITY_ATTRIBUTES) for asks in wanted], readings, IDENTITY_ATTRIBUTES)
    sums = (counts.sum(axis=1, keepdims=True) for counts in (colours.right, colours.evaluated))
    return scene.concatenate(Tally((RECOLOURING,), *sums))


def reasoning(examples: Sequence[Example], readings: Int[np.ndarray, "n attributes"]) -> Tally:
    """Counts what reasoning prompts ask, which only the reference resolves."""
    return prompt(examples, readings).only(np.asarray([example.prompt.reasoning for example in examples]))


def pose_copy(examples: Sequence[Example], readings: Int[np.ndarray, "n attributes"]) -> Tally:
    """Counts the reference's pose where the prompt leaves it free; "right" means that the image repeats it."""
    poses = [_part(example.reference.scene.attributes(), POSE_ATTRIBUTES) for example in examples]
    wanted = [_part(pose, example.prompt.free) for pose, example in zip(poses, examples, strict=True)]
    return _compare(wanted, readings, POSE_ATTRIBUTES)


def truth(examples: Sequence[Example], readings: Int[np.ndarray, "n attributes"]) -> Tally:
    """Counts every attribute of the targets; for readings of the targets, this is the probe's own accuracy."""
    wanted = [vars(example.target.identity) | example.target.scene.attributes() for example in examples]
    return _compare(wanted, readings, tuple(ATTRIBUTES))


def accuracy(tally: Tally, weights: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """Returns the mean over names of the share that is right; NaN where nothing is evaluated.

    `weights`: how often each image counts.
    """
    right, evaluated = weights @ tally.right, weights @ tally.evaluated
    shares = np.divide(right, evaluated, out=np.zeros_like(right), where=evaluated > 0)
    return _ratio(shares.sum(axis=1), (evaluated > 0).sum(axis=1))


def all_right(tally: Tally, weights: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    """Returns the share of images in which everything evaluated is right; NaN where nothing is evaluated."""
    evaluated = tally.evaluated.any(axis=1)
    whole = evaluated & (tally.right == tally.evaluated).all(axis=1)
    return _ratio(weights @ whole, weights @ evaluated)


def copy_chance(tally: Tally) -> float:
    """Returns the `pose_copy` rate of independent images: poses are uniform, so one over an attribute's values."""
    chances = [
        1 / len(ATTRIBUTES[name])
        for name, evaluated in zip(tally.names, tally.evaluated.T, strict=True)
        if evaluated.any()
    ]
    return float(np.mean(chances)) if chances else float("nan")


def _compare(wanted: Sequence[Mapping[str, str | None]], readings: np.ndarray, names: tuple[str, ...]) -> Tally:
    """Counts the values of `wanted`, a mapping for each image, that are read; `names` are the columns."""
    columns = [list(ATTRIBUTES).index(name) for name in names]
    numbers = np.asarray([[number(name, asks[name]) if name in asks else -1 for name in names] for asks in wanted])
    evaluated = numbers.reshape(-1, len(names)) >= 0
    return Tally(names, (evaluated & (readings[:, columns] == numbers)).astype(int), evaluated.astype(int))


def _part(values: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name in names}


def _ratio(over: np.ndarray, under: np.ndarray) -> np.ndarray:
    return np.divide(over, under, out=np.full(len(over), np.nan), where=under > 0)
