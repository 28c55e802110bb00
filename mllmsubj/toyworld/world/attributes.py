"""Every attribute of a picture and its values by number: what a probe reads and is trained on."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32

from mllmsubj.toyworld.world.identity import Accessory, Colour, Identity, Shape, Texture
from mllmsubj.toyworld.world.scene import SCENE_ATTRIBUTES, Scene

NOTHING = "none"
"""The accent of a subject that wears nothing."""

IDENTITY_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Identity))
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "shape": tuple(Shape),
    "main": tuple(Colour),
    "second": tuple(Colour),
    "texture": tuple(Texture),
    "accessory": tuple(Accessory),
    "accent": (NOTHING, *Colour),
    **{name: tuple(kinds) for name, kinds in SCENE_ATTRIBUTES.items()},
}
"""Name -> values; a value's number is its place. The identity's first, then the scene's."""


def number(attribute: str, value: str | None) -> int:
    """Of a value among its attribute's; None is the accent of nothing."""
    return ATTRIBUTES[attribute].index(NOTHING if value is None else value)


def numbers(identity: Identity, scene: Scene) -> Int32[np.ndarray, " attributes"]:
    """Of all values, in the order of `ATTRIBUTES`."""
    values = {name: getattr(identity, name) for name in IDENTITY_ATTRIBUTES} | scene.attributes()
    return np.asarray([number(name, values[name]) for name in ATTRIBUTES], np.int32)
