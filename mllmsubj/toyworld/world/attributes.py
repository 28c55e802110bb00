"""All attributes of a picture with their values as class indices: the labels that the probe predicts."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32

from mllmsubj.toyworld.world.identity import Accessory, Color, Identity, Shape, Texture
from mllmsubj.toyworld.world.scene import SCENE_ATTRIBUTES, Scene

NOTHING = "none"
"""Value of the accent of a subject without an accessory."""

IDENTITY_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Identity))
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "shape": tuple(Shape),
    "main": tuple(Color),
    "second": tuple(Color),
    "texture": tuple(Texture),
    "accessory": tuple(Accessory),
    "accent": (NOTHING, *Color),
    **{name: tuple(kinds) for name, kinds in SCENE_ATTRIBUTES.items()},
}
"""Name -> values in the order of their indices; first the identity's attributes, then the scene's."""


def number(attribute: str, value: str | None) -> int:
    """Returns the index of an attribute's value; None is the accent of a subject without an accessory."""
    return ATTRIBUTES[attribute].index(NOTHING if value is None else value)


def numbers(identity: Identity, scene: Scene) -> Int32[np.ndarray, " attributes"]:
    """Returns the indices of all values, in the order of `ATTRIBUTES`."""
    values = {name: getattr(identity, name) for name in IDENTITY_ATTRIBUTES} | scene.attributes()
    return np.asarray([number(name, values[name]) for name in ATTRIBUTES], np.int32)
