"""Vocabulary of prompts: phrases for each attribute's value, and sentence patterns, some held out for the test split.

The splits share their words, since a small model has no language beyond its training data; only the ways of combining
them are held out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mllmsubj.toyworld.world.scene import Thing

PHRASES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "background": {
        "beach": ("on the beach", "on a sandy beach"),
        "snow": ("in the snow", "in a snowy landscape"),
        "forest": ("in the forest", "in the woods"),
        "city": ("in the city", "on a city street"),
        "moon": ("on the moon", "on the surface of the moon"),
        "room": ("in a room", "indoors"),
        "desert": ("in the desert", "in a sandy desert"),
        "sea": ("under the sea", "under water"),
        "meadow": ("in a meadow", "on green grass"),
        "castle": ("in front of a castle", "at the castle"),
    },
    "time": {
        "day": ("by day", "in daylight"),
        "sunset": ("at sunset", "in the evening light"),
        "night": ("at night", "in the dark"),
    },
    "column": {
        "left": ("on the left", "on the left side"),
        "centre": ("in the middle", "in the centre"),
        "right": ("on the right", "on the right side"),
    },
    "row": {"front": ("in the foreground", "near the front"), "back": ("further back", "near the horizon")},
    "size": {
        "small": ("seen small", "very small"),
        "medium": ("of medium size", "neither large nor small"),
        "large": ("seen large", "very large"),
    },
    "facing": {
        "left": ("facing left", "looking to the left"),
        "right": ("facing right", "looking to the right"),
    },
    "tilt": {
        "left": ("leaning left", "tilted to the left"),
        "upright": ("upright", "standing straight"),
        "right": ("leaning right", "tilted to the right"),
    },
    "thing": {
        "none": ("all alone", "with nothing beside it"),
        **{
            str(thing): (f"next to {article} {thing}", f"with {article} {thing} beside it")
            for thing in Thing
            if thing is not Thing.NONE
            for article in ["an" if thing is Thing.UMBRELLA else "a"]
        },
    },
}
"""Attribute -> value -> its phrases."""

NAMED_SUBJECTS = ("the {shape}", "a {shape}", "this {shape}", "the {shape} in the picture")
ANIMAL_SUBJECTS = ("the animal in the picture", "this animal")
CHARACTER_SUBJECTS = ("the character in the picture", "this character")
"""Subjects that are not animals; "object" could also mean the second object."""


@dataclass(frozen=True)
class Patterns:
    """Sentence patterns of one kind of prompt."""

    train: tuple[str, ...]
    """Patterns of the training split, which the tiny tokenizers were trained on."""
    other: tuple[str, ...]
    """Further patterns of the training split; with these, every word of `test` occurs in training."""
    test: tuple[str, ...]
    """Patterns of the test split, never used in training."""


PATTERNS: Mapping[str, Patterns] = {
    "scene": Patterns(
        train=(
            "{subject} {clauses}",
            "a picture of {subject} {clauses}",
            "draw {subject} {clauses}",
            "{subject}: {clauses}",
        ),
        other=(
            "show {subject} {clauses}",
            "now draw {subject} {clauses}",
            "a picture shows {subject} {clauses}",
            "{clauses}: draw {subject}",
            "{clauses}, a drawing of {subject}",
        ),
        test=(
            "a drawing that shows {subject} {clauses}",
            "now {clauses}: {subject}",
            "{subject}, this time {clauses}",
        ),
    ),
    "recolour": Patterns(
        train=("{subject} but {colour}", "{subject}, painted {colour}", "draw {subject} in {colour}"),
        other=("paint {subject} {colour}", "{colour} is now the colour of {subject}", "in {colour}: {subject}"),
        test=("the same picture of {subject} but now in {colour}", "make {subject} {colour}"),
    ),
    "recolour in scene": Patterns(
        train=("{subject} but {colour}, {clauses}", "{subject}, painted {colour}, {clauses}"),
        other=(
            "paint {subject} {colour} and draw it {clauses}",
            "{clauses}: draw {subject} in {colour}",
            "{clauses}, a picture of {subject} painted {colour}",
        ),
        test=("now {clauses}: {subject}, but in {colour}", "make {subject} {colour} and show it {clauses}"),
    ),
    "swap colours": Patterns(
        train=("{subject} with its two colours swapped", "swap the two colours of {subject}"),
        other=(
            "the two colours of {subject} exchanged",
            "make the first colour of {subject} its second",
            "{subject}: its first colour is now that of its details",
        ),
        test=(
            "paint {subject} in its second colour and its details in its first",
            "{subject}, its two colours exchanged",
        ),
    ),
    "swap with accessory": Patterns(
        train=("{subject} in the colour of its {accessory}, and the {accessory} in its colour",),
        other=(
            "{subject} and its {accessory}, their colours swapped",
            "paint {subject} in the colour of its {accessory} and the other way round",
            "the colours of the {accessory} and of {subject} exchanged",
        ),
        test=("swap the colours of {subject} and its {accessory}",),
    ),
    "turn round": Patterns(
        train=("{subject} facing the other way", "turn {subject} round"),
        other=(
            "now turn {subject} the other way",
            "{subject}, facing the opposite way",
            "make the face of {subject} look to its other side",
        ),
        test=("{subject}, now looking the other way", "make {subject} face the opposite side"),
    ),
    "other side": Patterns(
        train=("{subject} on the other side of the picture", "move {subject} to the other side"),
        other=(
            "{subject} on the opposite side",
            "on the other side: {subject}",
            "now draw {subject} on the side opposite to where it is",
        ),
        test=("now on the opposite side of the picture: {subject}",),
    ),
    "same place": Patterns(
        train=("{subject} in the same place {clauses}", "{subject} {clauses}, in the place of the picture"),
        other=(
            "{clauses}, in the same place: {subject}",
            "the place is the same: now draw {subject} {clauses}",
            "{subject} stays where it is, but {clauses}",
        ),
        test=("the place stays the same, but now {clauses}: {subject}",),
    ),
    "same time": Patterns(
        train=("{subject} {clauses}, at the same time of day", "{subject} {clauses}, in the light of the picture"),
        other=(
            "{clauses}, at the same time of day: {subject}",
            "the light is the same: now draw {subject} {clauses}",
            "draw {subject} {clauses}, but the time of day stays",
        ),
        test=("the time of day stays the same, but now {clauses}: {subject}",),
    ),
    "same company": Patterns(
        train=("{subject} {clauses}, with the same thing beside it", "{subject} and what is beside it, {clauses}"),
        other=(
            "{clauses}: {subject} with what is beside it",
            "draw {subject} {clauses}, and what is beside it stays",
            "now the same thing beside {subject}, {clauses}",
        ),
        test=("now {clauses}: {subject}, and the same thing beside it",),
    ),
    "without company": Patterns(
        train=("{subject} without what is beside it", "take away what is beside {subject}"),
        other=("draw {subject} only", "take the thing beside {subject} away", "now nothing is beside {subject}"),
        test=("now only {subject}, without the thing beside it",),
    ),
}
"""Kind of prompt -> its patterns."""
