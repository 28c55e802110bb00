"""Accessories, placed at a figure's anchors, and the patterns of textures."""

from functools import lru_cache

import numpy as np

from mllmsubj.toyworld.world.figures import Anchors
from mllmsubj.toyworld.world.geometry import Number, Part, Points, box, ellipse, polygon, ring, rotate, translate
from mllmsubj.toyworld.world.identity import Accessory, Texture


def worn(accessory: Accessory, anchors: Anchors) -> tuple[Part, ...]:
    """Returns the parts of an accessory, from back to front."""
    match accessory:
        case Accessory.HAT:
            return _hat(*anchors.top)
        case Accessory.CROWN:
            return _crown(*anchors.top)
        case Accessory.GLASSES:
            return _glasses(*anchors.eyes)
        case Accessory.SCARF:
            return _scarf(*anchors.neck)
        case Accessory.BOW:
            return _bow(*anchors.bow)
    return ()


def _hat(x: Number, y: Number, half: Number) -> tuple[Part, ...]:
    return (
        box(x - 0.68 * half, y, x + 0.68 * half, y + 0.21, 0.03, "accent"),
        box(x - 0.68 * half, y + 0.02, x + 0.68 * half, y + 0.065, 0.005, "ink", inked=False),
        box(x - 1.25 * half, y - 0.03, x + 1.25 * half, y + 0.03, 0.03, "accent"),
    )


def _crown(x: Number, y: Number, half: Number) -> tuple[Part, ...]:
    low, high, mid = y - 0.03, y + 0.2, y + 0.08
    tips = [(-1.1, high), (-0.55, mid), (0.0, high + 0.02), (0.55, mid), (1.1, high)]
    edge = [(x - 0.95 * half, low), *((x + a * half, b) for a, b in tips), (x + 0.95 * half, low)]
    balls = tuple(ellipse(x + a * half, b, 0.03, 0.03, "accent") for a, b in tips[::2])
    return (polygon(edge, "accent"), *balls)


def _glasses(x: Number, y: Number, apart: Number) -> tuple[Part, ...]:
    r = min(max(apart * 0.85, 0.075), 0.1)
    rims = tuple(ring(x + side * max(apart, r), y, r, r, 0.055, "accent") for side in (-1, 1))
    bridge = box(x - 0.03, y - 0.02, x + 0.03, y + 0.025, 0.005, "accent", inked=False)
    return (*rims, bridge)


def _scarf(x: Number, y: Number, half: Number, turn: Number) -> tuple[Part, ...]:
    side = x - 0.55 * half
    tail = polygon([(side - 0.05, y), (side + 0.08, y), (side + 0.06, y - 0.22), (side - 0.1, y - 0.2)], "accent")
    band = box(-half, -0.06, half, 0.06, 0.055, "accent")
    return (tail, Part(translate(rotate(band.points, turn), x, y), "accent"))


def _bow(x: Number, y: Number) -> tuple[Part, ...]:
    wings = (
        polygon([(0, 0.03), (-0.15, 0.1), (-0.15, -0.1), (0, -0.03)], "accent"),
        polygon([(0, 0.03), (0.15, 0.1), (0.15, -0.1), (0, -0.03)], "accent"),
        ellipse(0, 0, 0.045, 0.05, "accent"),
    )
    return tuple(Part(translate(rotate(part.points, 14), x, y), part.fill) for part in wings)


@lru_cache(maxsize=512)
def pattern(texture: Texture, box: tuple[float, float, float, float]) -> tuple[Points, ...]:
    """Returns the second color's outlines over a part that spans `box` (x0, y0, x1, y1) in figure coordinates."""
    x0, y0, x1, y1 = box
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    match texture:
        case Texture.STRIPES:
            lean = 0.12 * (y1 - y0)
            middles = cx + 0.22 * np.arange(-3, 4)
            return tuple(
                np.array([(x - 0.05 - lean, y0), (x + 0.05 - lean, y0), (x + 0.05 + lean, y1), (x - 0.05 + lean, y1)])
                for x in middles
                if x0 - 0.1 < x < x1 + 0.1
            )
        case Texture.SPOTS:
            places = [(cx + 0.26 * (i + 0.5 * (j % 2)), cy + 0.18 * j) for i in range(-3, 4) for j in range(-3, 4)]
            near = [(x, y) for x, y in places if x0 < x < x1 and y0 < y < y1]
            return tuple(ellipse(x, y, 0.07, 0.07, "").points[::2] for x, y in near)
        case Texture.CHECKS:
            side = 0.17
            cells = [(cx + side * i, cy + side * j) for i in range(-3, 4) for j in range(-3, 4) if (i + j) % 2]
            near = [(x, y) for x, y in cells if x0 - side < x < x1 and y0 - side < y < y1]
            return tuple(np.array([(x, y), (x + side, y), (x + side, y + side), (x, y + side)]) for x, y in near)
        case Texture.HALVES:
            middle = y0 + 0.45 * (y1 - y0)
            return (np.array([(x0, y0), (x1, y0), (x1, middle), (x0, middle)]),)
    return ()
