"""Scene of a picture: background, time of day, the subject's pose and a second object."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from mllmsubj.toyworld.world.identity import pick


class Background(StrEnum):
    """Place that the picture shows."""

    BEACH = "beach"
    SNOW = "snow"
    FOREST = "forest"
    CITY = "city"
    MOON = "moon"
    ROOM = "room"
    DESERT = "desert"
    SEA = "sea"
    MEADOW = "meadow"
    CASTLE = "castle"


class Time(StrEnum):
    """Time of day, which sets the light."""

    DAY = "day"
    SUNSET = "sunset"
    NIGHT = "night"


class Column(StrEnum):
    """Horizontal position of the subject."""

    LEFT = "left"
    CENTRE = "centre"
    RIGHT = "right"


class Row(StrEnum):
    """Vertical position of the subject: front is low in the picture, back is nearer to the horizon."""

    FRONT = "front"
    BACK = "back"


class Size(StrEnum):
    """Size of the subject in the picture."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


class Facing(StrEnum):
    """Side that the subject faces."""

    LEFT = "left"
    RIGHT = "right"


class Tilt(StrEnum):
    """Rotation in the picture plane; `render.TILT_DEGREES` has the angles."""

    LEFT = "left"
    UPRIGHT = "upright"
    RIGHT = "right"


class Thing(StrEnum):
    """Second object, on the free side of the subject."""

    NONE = "none"
    BALL = "ball"
    TREE = "tree"
    BOX = "box"
    BALLOON = "balloon"
    UMBRELLA = "umbrella"
    LAMP = "lamp"
    MUSHROOM = "mushroom"


@dataclass(frozen=True)
class Pose:
    """Position, size and orientation of the subject in the picture."""

    column: Column
    row: Row
    size: Size
    facing: Facing
    tilt: Tilt


@dataclass(frozen=True)
class Scene:
    """Everything in a picture except the subject's identity."""

    background: Background
    time: Time
    pose: Pose
    thing: Thing

    def attributes(self) -> dict[str, StrEnum]:
        """Returns all attributes by name (`SCENE_ATTRIBUTES`), including those of the pose."""
        pose = {name: getattr(self.pose, name) for name in POSE_ATTRIBUTES}
        return {"background": self.background, "time": self.time, **pose, "thing": self.thing}

    def replace(self, **changes: StrEnum) -> "Scene":
        """Returns this scene with some attributes, named as in `attributes`, changed."""
        pose = {name: value for name, value in changes.items() if name in POSE_ATTRIBUTES}
        rest = {name: value for name, value in changes.items() if name not in POSE_ATTRIBUTES}
        return dataclasses.replace(self, pose=dataclasses.replace(self.pose, **pose), **rest)  # type: ignore[arg-type]


SCENE_ATTRIBUTES: Mapping[str, type[StrEnum]] = {
    "background": Background,
    "time": Time,
    "column": Column,
    "row": Row,
    "size": Size,
    "facing": Facing,
    "tilt": Tilt,
    "thing": Thing,
}
"""Attribute -> the enum of its values."""

POSE_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Pose))

CANONICAL_POSE = Pose(Column.CENTRE, Row.FRONT, Size.LARGE, Facing.LEFT, Tilt.UPRIGHT)
"""Canonical pose, for subjects whose pose the prompt does not mention: large and centered, as in photographs."""


def random_scene(rng: np.random.Generator, pose_randomness: float = 1.0) -> Scene:
    """Returns a random scene: attributes are uniform and independent, but half of the scenes have no second object.

    `pose_randomness`: probability, for each attribute of the pose, that it is random instead of canonical.
    """
    values = {name: pick(rng, tuple(kinds)) for name, kinds in SCENE_ATTRIBUTES.items()}
    if rng.random() < 0.5 - 0.5 / (len(Thing) - 1):  # "none" was already sampled in one of eight
        values["thing"] = Thing.NONE
    pose = Pose(**{name: values.pop(name) for name in POSE_ATTRIBUTES})
    if pose_randomness < 1.0:  # samples only where needed, so that a seed keeps its scenes
        usual = {name: getattr(CANONICAL_POSE, name) for name in POSE_ATTRIBUTES if rng.random() >= pose_randomness}
        pose = dataclasses.replace(pose, **usual)
    return Scene(pose=pose, **values)
