"""Hand-made examples and readings."""

import numpy as np

from mllmsubj.toyworld import Example, HeldOut, Identity, Picture, Pose, Prompt, Scene
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, number, numbers
from mllmsubj.toyworld.world.identity import Accessory, Color, Shape, Texture
from mllmsubj.toyworld.world.scene import SCENE_ATTRIBUTES, Background, Column, Facing, Row, Size, Thing, Tilt, Time

DOG = Identity(Shape.DOG, Color.RED, Color.BLUE, Texture.SPOTS, Accessory.HAT, Color.PINK)
BARE = DOG.replace(accessory=Accessory.NONE, accent=None)
POSE = Pose(Column.LEFT, Row.BACK, Size.SMALL, Facing.LEFT, Tilt.UPRIGHT)
OTHER_POSE = Pose(Column.RIGHT, Row.FRONT, Size.LARGE, Facing.RIGHT, Tilt.LEFT)
SCENE = Scene(Background.MOON, Time.NIGHT, POSE, Thing.BALL)
OTHER = Scene(Background.BEACH, Time.DAY, OTHER_POSE, Thing.NONE)


def case(*asks, identity=DOG, reasoning=False) -> Example:
    """Returns an example with its reference in SCENE and its target in OTHER, except for what `asks` changes."""
    values = tuple((name, SCENE_ATTRIBUTES.get(name, Color)(value)) for name, value in asks)
    prompt = Prompt("…", "scene", values, reasoning)
    target = Picture(prompt.identity(identity), prompt.scene(OTHER))
    return Example(Picture(identity, SCENE), prompt, target, HeldOut.IDENTITY)


def read(example: Example, **wrong) -> np.ndarray:
    """Returns the target's attribute numbers, except for those in `wrong`."""
    found = numbers(example.target.identity, example.target.scene)
    for name, value in wrong.items():
        found[list(ATTRIBUTES).index(name)] = number(name, value)
    return found


def stacked(*cases) -> tuple[list[Example], np.ndarray]:
    """Returns the examples and the stacked readings of (example, reading) pairs."""
    return [example for example, _ in cases], np.stack([reading for _, reading in cases])
