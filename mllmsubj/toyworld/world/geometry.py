"""Closed outlines as arrays of points: the parts that figures consist of.

Figure coordinates: x in [-0.5, 0.5] to the right, y from 0 (the ground) up to about 0.85, facing right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "n 2"]
Number = float | int


@dataclass(frozen=True, eq=False)
class Part:
    """Filled outline, optionally with an ink border and a texture."""

    points: Points
    fill: str
    """Name of a color: main, second or accent, which depend on the identity, or a key of `render.FIXED_COLORS`."""
    textured: bool = False
    inked: bool = True

    @property
    def normals(self) -> Points:
        """Offsets of the points that widen the outline by one unit on all sides."""
        edges = np.roll(self.points, -1, 0) - self.points
        outward = np.stack([edges[:, 1], -edges[:, 0]], 1)
        outward = outward / np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-9)
        both = outward + np.roll(outward, 1, 0)
        both = both / np.maximum((both**2).sum(1, keepdims=True) / 2, 0.35)  # miter joins, limited at sharp corners
        x, y = self.points.T
        area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum()
        return both if area > 0 else -both


def ellipse(
    x: Number,
    y: Number,
    rx: Number,
    ry: Number,
    fill: str,
    turn: Number = 0.0,
    textured: bool = False,
    inked: bool = True,
) -> Part:
    """Returns an ellipse with center (x, y) and half axes (rx, ry), rotated by `turn` degrees counterclockwise."""
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    points = np.stack([rx * np.cos(angle), ry * np.sin(angle)], 1)
    return Part(translate(rotate(points, turn), x, y), fill, textured, inked)


def box(
    x0: Number,
    y0: Number,
    x1: Number,
    y1: Number,
    radius: Number,
    fill: str,
    textured: bool = False,
    inked: bool = True,
) -> Part:
    """Returns a rectangle with round corners."""
    quarter = np.linspace(0, np.pi / 2, 5)
    left, right, low, high = x0 + radius, x1 - radius, y0 + radius, y1 - radius
    arcs = []
    for i, (x, y) in enumerate(((right, high), (left, high), (left, low), (right, low))):
        angle = quarter + i * np.pi / 2
        arcs.append(translate(radius * np.stack([np.cos(angle), np.sin(angle)], 1), x, y))
    return Part(np.concatenate(arcs), fill, textured, inked)


def polygon(points: Sequence[tuple[Number, Number]], fill: str, textured: bool = False, inked: bool = True) -> Part:
    """Returns a polygon."""
    return Part(np.asarray(points, np.float64), fill, textured, inked)


def blob(points: Sequence[tuple[Number, Number]], fill: str, textured: bool = False, inked: bool = True) -> Part:
    """Returns a smooth closed curve through the points (Catmull-Rom spline)."""
    p = np.asarray(points, np.float64)
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    pieces = []
    for t in np.linspace(0, 1, 6, endpoint=False):
        cubic = (3 * p - before - 3 * after + beyond) * t**3 + (2 * before - 5 * p + 4 * after - beyond) * t**2
        pieces.append(0.5 * (2 * p + (after - before) * t + cubic))
    return Part(np.stack(pieces, 1).reshape(-1, 2), fill, textured, inked)


def ring(
    x: Number,
    y: Number,
    rx: Number,
    ry: Number,
    thickness: Number,
    fill: str,
    start: Number = 0.0,
    stop: Number = 360.0,
) -> Part:
    """Returns a band along an ellipse between two angles in degrees."""
    angle = np.radians(np.linspace(start, stop, 24))
    way = np.stack([np.cos(angle), np.sin(angle)], 1)
    outer = way * (rx + thickness / 2, ry + thickness / 2)
    inner = way[::-1] * (rx - thickness / 2, ry - thickness / 2)
    return Part(translate(np.concatenate([outer, inner]), x, y), fill)


def stroke(points: Sequence[tuple[Number, Number]], width: Number, fill: str, inked: bool = True) -> Part:
    """Returns a smooth line of constant width near the points (a polynomial fit of at most third degree)."""
    p = np.asarray(points, np.float64)
    t = np.arange(len(p), dtype=np.float64)
    fine = np.linspace(0, len(p) - 1, 4 * (len(p) - 1) + 1)
    degree = min(len(p) - 1, 3)
    line = np.stack([np.polyval(np.polyfit(t, p[:, axis], degree), fine) for axis in (0, 1)], 1)
    along = np.gradient(line, axis=0)
    side = np.stack([-along[:, 1], along[:, 0]], 1) / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    half = width / 2
    return Part(np.concatenate([line + half * side, (line - half * side)[::-1]]), fill, False, inked)


def rotate(points: Points, degrees: Number) -> Points:
    """Returns points rotated counterclockwise about the origin."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


def translate(points: Points, x: Number, y: Number) -> Points:
    """Returns points moved by `x` to the right and `y` up."""
    return points + np.array((x, y))
