"""Rendering of an identity in a scene, supersampled and averaged down."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from mllmsubj.toyworld.world.accessories import pattern, worn
from mllmsubj.toyworld.world.backgrounds import place
from mllmsubj.toyworld.world.figures import FIGURES
from mllmsubj.toyworld.world.geometry import Part, Points, translate
from mllmsubj.toyworld.world.identity import PALETTE, Accessory, Identity, Rgb, Shape, Texture
from mllmsubj.toyworld.world.scene import Column, Facing, Pose, Row, Scene, Size, Thing, Tilt, Time
from mllmsubj.toyworld.world.things import THINGS

TILT_DEGREES: Mapping[Tilt, float] = {Tilt.LEFT: 20.0, Tilt.UPRIGHT: 0.0, Tilt.RIGHT: -20.0}
"""Rotation in degrees, counterclockwise."""
COLUMN: Mapping[Column, float] = {Column.LEFT: 0.25, Column.CENTRE: 0.5, Column.RIGHT: 0.75}
"""Center of the subject as a fraction of the picture's width. Positions, here and in `ROW`, differ by whole tokens of
the tiny transformer (eighths of the side), so that moving a subject only moves its latents to other tokens."""
ROW: Mapping[Row, float] = {Row.FRONT: 0.93, Row.BACK: 0.68}
"""The subject's feet as a fraction of the picture's height, from the top."""
SIZE: Mapping[Size, float] = {Size.SMALL: 0.4, Size.MEDIUM: 0.48, Size.LARGE: 0.57}
"""The unit of figure coordinates as a fraction of the picture's side."""
TINT: Mapping[Time, tuple[float, float, float]] = {
    Time.DAY: (1.0, 1.0, 1.0),
    Time.SUNSET: (1.0, 0.9, 0.82),
    Time.NIGHT: (0.82, 0.84, 0.95),
}
"""Factors on red, green and blue of subjects and objects; milder than `LIGHT`, so that colors stay recognizable."""
THING_SIZE, THING_BASE = 0.3, 0.82
"""The second object's unit and base as fractions of the picture's side, as in `SIZE` and `ROW`."""

FIXED_COLORS: Mapping[str, Rgb] = {
    "ink": (44, 34, 50),
    "white": (252, 250, 246),
    "blush": (244, 130, 130),
    "amber": (255, 176, 46),
    "leaf": (72, 160, 78),
    "coffee": (92, 56, 40),
    "screen": (58, 58, 78),
    "glow": (255, 244, 170),
    "glass": (196, 230, 244),
    "wood": (140, 94, 60),
    "card": (222, 178, 122),
    "lamp": (255, 222, 110),
    "red": (224, 66, 62),
    "blue": (66, 128, 220),
}
"""Colors that do not depend on the identity."""


@dataclass(frozen=True, eq=False)
class _Sprite:
    """Points of several parts in one array, so that a pose takes one matrix product."""

    points: Points
    normals: Points
    pieces: tuple[tuple[slice, Part], ...]
    patterns: tuple[tuple[slice, int], ...]
    """Outlines of the texture, each with the index of its piece."""


@dataclass(frozen=True)
class _Placement:
    """Transform from figure coordinates to pixels: optional mirroring, rotation about the center, scale and shift."""

    x: float
    y: float
    unit: float
    mirrored: bool
    degrees: float

    def __call__(self, points: Points) -> Float[np.ndarray, "n 2"]:
        return translate(self.direction(translate(points, 0.0, -0.42)), self.x, self.y - 0.42 * self.unit)

    def direction(self, points: Points) -> Float[np.ndarray, "n 2"]:
        """Returns directions transformed without the shift."""
        c, s = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        flip = -1.0 if self.mirrored else 1.0
        return points @ (self.unit * np.array([[flip * c, -flip * s], [-s, -c]]))


def render(identity: Identity, scene: Scene, size: int = 64) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the picture as 8-bit RGB; `size` should be between 64 and 512."""
    factor = 3 if size < 192 else 2
    side = size * factor
    image = place(scene.background, scene.time, side).copy()
    thing_first = ROW[scene.pose.row] > THING_BASE
    if thing_first:
        _draw_thing(image, scene)
    _draw_subject(image, identity, scene)
    if not thing_first:
        _draw_thing(image, scene)
    return np.asarray(image.reduce(factor))


def around(pose: Pose) -> tuple[float, float, float]:
    """Returns x and y of the subject's center and half the side of a square around it, as fractions of the side."""
    unit = SIZE[pose.size]
    return COLUMN[pose.column], ROW[pose.row] - 0.42 * unit, 0.62 * unit


def _draw_subject(image: Image.Image, identity: Identity, scene: Scene) -> None:
    pose, side = scene.pose, image.width
    where = _Placement(
        x=COLUMN[pose.column] * side,
        y=ROW[pose.row] * side,
        unit=SIZE[pose.size] * side,
        mirrored=pose.facing is Facing.LEFT,
        degrees=TILT_DEGREES[pose.tilt],
    )
    _draw_shadow(image, where, 0.36)
    colours = {"main": PALETTE[identity.main], "second": PALETTE[identity.second]}
    if identity.accent is not None:
        colours["accent"] = PALETTE[identity.accent]
    _draw(image, _subject_sprite(identity.shape, identity.texture, identity.accessory), where, colours, scene.time)


def _draw_thing(image: Image.Image, scene: Scene) -> None:
    if scene.thing is Thing.NONE:
        return
    pose, side = scene.pose, image.width
    on_right = pose.column is Column.LEFT or (pose.column is Column.CENTRE and pose.facing is Facing.RIGHT)
    x = 0.85 if on_right else 0.15
    where = _Placement(x * side, THING_BASE * side, THING_SIZE * side, mirrored=False, degrees=0.0)
    _draw_shadow(image, where, 0.34)
    _draw(image, _thing_sprite(scene.thing), where, {}, scene.time)


def _draw_shadow(image: Image.Image, where: _Placement, half: float) -> None:
    """Draws a translucent ellipse on the ground."""
    rx, ry = half * where.unit, 0.07 * where.unit
    box = (round(where.x - rx), round(where.y - ry), round(where.x + rx), round(where.y + ry))
    mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
    ImageDraw.Draw(mask).ellipse([0, 0, mask.width - 1, mask.height - 1], fill=90)
    image.paste((20, 16, 36), box, mask)


def _draw(image: Image.Image, sprite: _Sprite, where: _Placement, own: Mapping[str, Rgb], time: Time) -> None:
    """Draws the parts from back to front, each as ink outline, fill, texture and a shade on the lower right."""
    colours = _tinted(own, time)
    points = where(sprite.points)
    width = max(0.026 * where.unit, 0.011 * image.width)
    outer = points + where.direction(sprite.normals) * (width / where.unit)
    draw = ImageDraw.Draw(image)
    for i, (span, part) in enumerate(sprite.pieces):
        if part.inked:
            draw.polygon(_flat(outer[span]), fill=colours["ink"])
        draw.polygon(_flat(points[span]), fill=colours[part.fill])
        if part.textured:
            marks = [points[mark] for mark, piece in sprite.patterns if piece == i]
            _paint_clipped(image, points[span], marks, colours["second"], 255)
        if part.inked and part.fill != "ink":
            _shade(image, points[span], where.unit)


def _shade(image: Image.Image, outline: Float[np.ndarray, "n 2"], unit: float) -> None:
    """Darkens a crescent: the inside of the outline minus that of the outline moved up and left."""
    low, high = outline.min(0), outline.max(0)
    if (high - low).min() < 0.1 * unit:
        return
    x0, y0 = int(low[0]), int(low[1])
    mask = Image.new("L", (int(high[0]) - x0 + 1, int(high[1]) - y0 + 1))
    draw = ImageDraw.Draw(mask)
    draw.polygon(_flat(outline - (x0, y0)), fill=52)
    draw.polygon(_flat(outline - (x0, y0) - (0.045 * unit, 0.055 * unit)), fill=0)
    image.paste((24, 10, 60), (x0, y0), mask)


def _paint_clipped(
    image: Image.Image,
    outline: Float[np.ndarray, "n 2"],
    marks: Sequence[Float[np.ndarray, "m 2"]],
    colour: Rgb,
    strength: int,
) -> None:
    """Fills the marks, clipped to the outline."""
    low, high = outline.min(0), outline.max(0)
    x0, y0 = int(low[0]), int(low[1])
    size = (int(high[0]) - x0 + 1, int(high[1]) - y0 + 1)
    mask, inside = Image.new("L", size), Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for mark in marks:
        draw.polygon(_flat(mark - (x0, y0)), fill=strength)
    ImageDraw.Draw(inside).polygon(_flat(outline - (x0, y0)), fill=255)
    clipped = Image.new("L", size)
    clipped.paste(mask, (0, 0), inside)
    image.paste(colour, (x0, y0), clipped)


def _flat(points: Float[np.ndarray, "n 2"]) -> list[float]:
    return points.ravel().tolist()


def _tinted(own: Mapping[str, Rgb], time: Time) -> dict[str, Rgb]:
    factors = TINT[time]
    shining = {"glow", "lamp"} if time is Time.NIGHT else set()
    return {
        name: rgb if name in shining else _times(rgb, factors) for name, rgb in (*FIXED_COLORS.items(), *own.items())
    }


def _times(rgb: Rgb, factors: tuple[float, float, float]) -> Rgb:
    r, g, b = (int(value * factor) for value, factor in zip(rgb, factors, strict=True))
    return r, g, b


@cache
def _subject_sprite(shape: Shape, texture: Texture, accessory: Accessory) -> _Sprite:
    figure = FIGURES[shape]
    return _sprite(figure.parts + worn(accessory, figure.anchors), texture)


@cache
def _thing_sprite(thing: Thing) -> _Sprite:
    return _sprite(THINGS[thing], Texture.PLAIN)


def _sprite(parts: tuple[Part, ...], texture: Texture) -> _Sprite:
    arrays, spans, start = [part.points for part in parts], [], 0
    marks = []
    for i, part in enumerate(parts):
        if part.textured:
            low, high = part.points.min(0).tolist(), part.points.max(0).tolist()
            marks += [(mark, i) for mark in pattern(texture, (*low, *high))]
    for array in [*arrays, *(mark for mark, _ in marks)]:
        spans.append(slice(start, start + len(array)))
        start += len(array)
    normals = [part.normals for part in parts] + [np.zeros_like(mark) for mark, _ in marks]
    return _Sprite(
        points=np.concatenate([*arrays, *(mark for mark, _ in marks)]),
        normals=np.concatenate(normals),
        pieces=tuple(zip(spans, parts, strict=False)),
        patterns=tuple((span, i) for span, (_, i) in zip(spans[len(parts) :], marks, strict=True)),
    )
