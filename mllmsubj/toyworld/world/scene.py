"""What changes around a subject: background, time of day, pose and a second object."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from mllmsubj.toyworld.world.identity import pick


class Background(StrEnum):
    """Where the subject is."""

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
    """Time of day: the light."""

    DAY = "day"
    SUNSET = "sunset"
    NIGHT = "night"


class Column(StrEnum):
    """Where across the picture."""

    LEFT = "left"
    CENTRE = "centre"
    RIGHT = "right"


class Row(StrEnum):
    """Front is low in the picture, back is nearer to the horizon."""

    FRONT = "front"
    BACK = "back"


class Size(StrEnum):
    """How large the subject is drawn."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


class Facing(StrEnum):
    """The side that the subject looks to."""

    LEFT = "left"
    RIGHT = "right"


class Tilt(StrEnum):
    """Rotation in the picture plane, by `render.TILT_DEGREES`."""

    LEFT = "left"
    UPRIGHT = "upright"
    RIGHT = "right"


class Thing(StrEnum):
    """A second object, on the free side of the subject."""

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
    """How the subject stands in the picture."""

    column: Column
    row: Row
    size: Size
    facing: Facing
    tilt: Tilt


@dataclass(frozen=True)
class Scene:
    """All of a picture but its subject."""

    background: Background
    time: Time
    pose: Pose
    thing: Thing

    def attributes(self) -> dict[str, StrEnum]:
        """Every attribute by name (`SCENE_ATTRIBUTES`), the pose's among them."""
        pose = {name: getattr(self.pose, name) for name in POSE_ATTRIBUTES}
        return {"background": self.background, "time": self.time, **pose, "thing": self.thing}

    def replace(self, **changes: StrEnum) -> "Scene":
        """This scene with some attributes, named as in `attributes`, changed."""
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
"""Name -> the enum of its values."""

POSE_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Pose))

USUAL = Pose(Column.CENTRE, Row.FRONT, Size.LARGE, Facing.LEFT, Tilt.UPRIGHT)
"""How a picture shows a subject of whose pose nothing is said, as photographs do: large and in the middle."""


def random_scene(rng: np.random.Generator, pose_randomness: float = 1.0) -> Scene:
    """Any scene, each attribute uniform and independent, but that half of the scenes have no second object.

    `pose_randomness`: chance of each of the pose's attributes to be any; else it is the usual one.
    """
    values = {name: pick(rng, tuple(kinds)) for name, kinds in SCENE_ATTRIBUTES.items()}
    if rng.random() < 0.5 - 0.5 / (len(Thing) - 1):  # "none" already came up in one of eight
        values["thing"] = Thing.NONE
    pose = Pose(**{name: values.pop(name) for name in POSE_ATTRIBUTES})
    if pose_randomness < 1.0:  # no draw where none is needed: scenes of a seed stay what they were
        usual = {name: getattr(USUAL, name) for name in POSE_ATTRIBUTES if rng.random() >= pose_randomness}
        pose = dataclasses.replace(pose, **usual)
    return Scene(pose=pose, **values)
