"""Figures of animals and things: their parts from back to front, and anchors for accessories."""

from collections.abc import Mapping
from dataclasses import dataclass

from mllmsubj.toyworld.world.geometry import Number, Part, blob, box, ellipse, polygon, ring, rotate, stroke, translate
from mllmsubj.toyworld.world.identity import Shape


@dataclass(frozen=True)
class Anchors:
    """Positions of accessories, in figure coordinates."""

    top: tuple[Number, Number, Number]
    """Center of a hat's brim, and half its width."""
    eyes: tuple[Number, Number, Number]
    """Midpoint between the eyes, and half their distance."""
    neck: tuple[Number, Number, Number, Number]
    """Center of a scarf, half its length, and its rotation in degrees."""
    bow: tuple[Number, Number]
    """Center of a bow."""


@dataclass(frozen=True, eq=False)
class Figure:
    """Drawing of a shape, facing right."""

    parts: tuple[Part, ...]
    anchors: Anchors


def eye(x: Number, y: Number, r: Number = 0.045) -> tuple[Part, ...]:
    """Returns an eye: a dark oval with a highlight."""
    return (
        ellipse(x, y, r, 1.25 * r, "ink", inked=False),
        ellipse(x + 0.3 * r, y + 0.5 * r, 0.42 * r, 0.42 * r, "white", inked=False),
    )


def face(x: Number, y: Number, apart: Number, r: Number = 0.045) -> tuple[Part, ...]:
    """Returns a face: two eyes, cheeks and a smile."""
    smile = [(x - 0.055, y - 0.07), (x - 0.02, y - 0.105), (x + 0.02, y - 0.105), (x + 0.055, y - 0.07)]
    return (
        ellipse(x - apart - 0.03, y - 0.085, 0.04, 0.026, "blush", inked=False),
        ellipse(x + apart + 0.03, y - 0.085, 0.04, 0.026, "blush", inked=False),
        *eye(x - apart, y, r),
        *eye(x + apart, y, r),
        stroke(smile, 0.026, "ink", inked=False),
    )


def _dog() -> Figure:
    legs = [(-0.3, "main"), (-0.17, "main"), (0.05, "main"), (0.18, "main")]
    parts = (
        stroke([(-0.33, 0.36), (-0.43, 0.45), (-0.46, 0.58), (-0.41, 0.66)], 0.085, "second"),
        *(box(x - 0.06, 0.0, x + 0.06, 0.25, 0.05, fill) for x, fill in legs),
        *(box(x - 0.065, 0.0, x + 0.075, 0.075, 0.035, "second") for x, _ in legs),
        blob([(-0.38, 0.3), (-0.3, 0.44), (-0.05, 0.47), (0.2, 0.5), (0.27, 0.3), (0.1, 0.15), (-0.22, 0.13)],
             "main", True),
        ellipse(0.4, 0.57, 0.07, 0.15, "second", 18),
        ellipse(0.2, 0.6, 0.22, 0.2, "main"),
        ellipse(0.31, 0.53, 0.135, 0.1, "second"),
        ellipse(0.37, 0.585, 0.05, 0.038, "ink", inked=False),
        stroke([(0.25, 0.5), (0.29, 0.47), (0.34, 0.47), (0.37, 0.5)], 0.022, "ink", inked=False),
        *eye(0.15, 0.66),
        *eye(0.31, 0.68),
        ellipse(0.0, 0.58, 0.08, 0.17, "second", -16),
    )  # fmt: skip
    return Figure(parts, Anchors((0.2, 0.77, 0.15), (0.23, 0.67, 0.085), (0.16, 0.41, 0.17, 14), (0.06, 0.78)))


def _cat() -> Figure:
    parts = (
        stroke([(-0.24, 0.1), (-0.42, 0.12), (-0.46, 0.32), (-0.38, 0.46)], 0.1, "main"),
        ellipse(-0.39, 0.46, 0.062, 0.07, "second", -20),
        blob([(-0.3, 0.08), (-0.27, 0.28), (-0.12, 0.45), (0.12, 0.45), (0.2, 0.25), (0.2, 0.05), (-0.05, 0.01)],
             "main", True),
        box(0.0, 0.0, 0.12, 0.22, 0.05, "main"),
        box(0.15, 0.0, 0.27, 0.24, 0.05, "main"),
        box(-0.01, 0.0, 0.14, 0.075, 0.035, "second"),
        box(0.145, 0.0, 0.295, 0.075, 0.035, "second"),
        polygon([(-0.15, 0.62), (-0.13, 0.9), (0.08, 0.76)], "main"),
        polygon([(0.33, 0.64), (0.34, 0.9), (0.12, 0.76)], "main"),
        polygon([(-0.1, 0.68), (-0.095, 0.82), (0.03, 0.75)], "second", inked=False),
        polygon([(0.29, 0.68), (0.3, 0.82), (0.18, 0.75)], "second", inked=False),
        blob([(-0.17, 0.58), (-0.1, 0.73), (0.1, 0.77), (0.29, 0.73), (0.36, 0.58), (0.26, 0.43), (0.1, 0.4),
              (-0.07, 0.43)], "main"),
        ellipse(0.16, 0.5, 0.1, 0.065, "second", inked=False),
        *face(0.16, 0.6, 0.105, 0.05),
        polygon([(0.125, 0.55), (0.195, 0.55), (0.16, 0.515)], "ink", inked=False),
        *(polygon([(0.27, 0.51 + d), (0.45, 0.52 + 3 * d), (0.27, 0.525 + d)], "ink", inked=False)
          for d in (-0.02, 0.02)),
        *(polygon([(0.02, 0.51 + d), (-0.2, 0.52 + 3 * d), (0.02, 0.525 + d)], "ink", inked=False)
          for d in (-0.02, 0.02)),
    )  # fmt: skip
    return Figure(parts, Anchors((0.1, 0.755, 0.14), (0.16, 0.6, 0.105), (0.06, 0.4, 0.18, 0), (-0.07, 0.78)))


def _rabbit() -> Figure:
    parts = (
        ellipse(-0.3, 0.16, 0.09, 0.09, "second"),
        ellipse(0.0, 0.8, 0.075, 0.22, "main", 10),
        ellipse(0.0, 0.8, 0.035, 0.15, "second", 10, inked=False),
        ellipse(0.22, 0.8, 0.075, 0.22, "main", -14),
        ellipse(0.22, 0.8, 0.035, 0.15, "second", -14, inked=False),
        blob([(-0.29, 0.1), (-0.25, 0.32), (-0.05, 0.42), (0.18, 0.38), (0.27, 0.18), (0.2, 0.02), (-0.15, 0.01)],
             "main", True),
        ellipse(-0.1, 0.055, 0.13, 0.058, "second"),
        ellipse(0.23, 0.05, 0.12, 0.052, "second"),
        ellipse(0.12, 0.52, 0.24, 0.19, "main"),
        ellipse(0.2, 0.46, 0.1, 0.065, "second", inked=False),
        *face(0.2, 0.55, 0.1),
        ellipse(0.2, 0.5, 0.03, 0.022, "ink", inked=False),
        box(0.17, 0.38, 0.2, 0.435, 0.01, "white", inked=False),
        box(0.203, 0.38, 0.233, 0.435, 0.01, "white", inked=False),
    )  # fmt: skip
    return Figure(parts, Anchors((0.12, 0.68, 0.15), (0.2, 0.55, 0.1), (0.08, 0.35, 0.18, 0), (-0.06, 0.66)))


def _bird() -> Figure:
    parts = (
        stroke([(-0.02, 0.15), (-0.02, 0.03), (0.06, 0.02)], 0.05, "amber"),
        stroke([(0.12, 0.15), (0.12, 0.03), (0.2, 0.02)], 0.05, "amber"),
        blob([(-0.48, 0.5), (-0.45, 0.38), (-0.2, 0.24), (-0.15, 0.42), (-0.28, 0.48)], "second"),
        polygon([(0.36, 0.64), (0.5, 0.57), (0.37, 0.51)], "amber"),
        blob([(-0.32, 0.36), (-0.15, 0.57), (-0.08, 0.72), (0.12, 0.82), (0.34, 0.73), (0.4, 0.55), (0.33, 0.3),
              (0.15, 0.12), (-0.15, 0.13)], "main", True),
        ellipse(0.2, 0.62, 0.17, 0.15, "main", inked=False),
        stroke([(0.1, 0.8), (0.04, 0.9), (-0.05, 0.88)], 0.05, "second"),
        blob([(-0.36, 0.26), (-0.2, 0.44), (0.05, 0.46), (0.1, 0.32), (-0.08, 0.22)], "second"),
        ellipse(0.2, 0.53, 0.05, 0.03, "blush", inked=False),
        *eye(0.13, 0.65, 0.05),
        *eye(0.3, 0.65, 0.05),
    )  # fmt: skip
    return Figure(parts, Anchors((0.16, 0.79, 0.15), (0.215, 0.65, 0.09), (0.18, 0.45, 0.21, 8), (0.0, 0.8)))


def _fish() -> Figure:
    parts = (
        blob([(-0.28, 0.4), (-0.48, 0.62), (-0.43, 0.42), (-0.49, 0.2)], "second"),
        blob([(-0.2, 0.55), (-0.14, 0.76), (0.02, 0.79), (0.14, 0.6)], "second"),
        blob([(-0.1, 0.25), (-0.12, 0.08), (0.02, 0.1), (0.08, 0.25)], "second"),
        blob([(-0.36, 0.4), (-0.2, 0.58), (0.05, 0.67), (0.3, 0.6), (0.44, 0.43), (0.33, 0.25), (0.05, 0.15),
              (-0.2, 0.24)], "main", True),
        blob([(0.2, 0.63), (0.36, 0.55), (0.44, 0.43), (0.34, 0.26), (0.2, 0.2), (0.15, 0.42)], "main", inked=False),
        blob([(-0.08, 0.42), (0.07, 0.44), (0.02, 0.33), (-0.1, 0.29)], "second"),
        ellipse(0.26, 0.33, 0.045, 0.03, "blush", inked=False),
        *eye(0.22, 0.48, 0.052),
        *eye(0.37, 0.48, 0.045),
        stroke([(0.28, 0.37), (0.33, 0.345), (0.37, 0.35), (0.405, 0.38)], 0.026, "ink", inked=False),
    )  # fmt: skip
    return Figure(parts, Anchors((0.17, 0.64, 0.15), (0.295, 0.48, 0.08), (0.12, 0.4, 0.25, 84), (0.04, 0.72)))


def _turtle() -> Figure:
    parts = (
        polygon([(-0.38, 0.16), (-0.5, 0.13), (-0.38, 0.08)], "second"),
        *(box(x - 0.075, 0.0, x + 0.075, 0.2, 0.06, "second") for x in (-0.25, 0.14)),
        blob([(0.13, 0.14), (0.24, 0.3), (0.2, 0.5), (0.3, 0.64), (0.44, 0.6), (0.49, 0.48), (0.4, 0.37), (0.35, 0.2)],
             "second"),
        blob([(-0.43, 0.14), (-0.38, 0.36), (-0.2, 0.54), (0.0, 0.56), (0.17, 0.42), (0.25, 0.14), (-0.1, 0.1)],
             "main", True),
        box(-0.47, 0.1, 0.28, 0.185, 0.042, "main"),
        *eye(0.32, 0.53, 0.042),
        *eye(0.43, 0.53, 0.036),
        stroke([(0.36, 0.45), (0.4, 0.43), (0.43, 0.435), (0.455, 0.46)], 0.024, "ink", inked=False),
    )  # fmt: skip
    return Figure(parts, Anchors((0.33, 0.62, 0.13), (0.375, 0.53, 0.065), (0.27, 0.33, 0.12, 14), (0.22, 0.6)))


def _mug() -> Figure:
    parts = (
        ring(-0.27, 0.37, 0.14, 0.16, 0.075, "second", 60, 300),
        box(-0.27, 0.0, 0.37, 0.68, 0.1, "main", True),
        box(-0.27, 0.0, 0.37, 0.09, 0.045, "second"),
        ellipse(0.05, 0.68, 0.32, 0.085, "second"),
        ellipse(0.05, 0.68, 0.25, 0.055, "coffee"),
        ellipse(0.15, 0.36, 0.185, 0.16, "main", inked=False),
        *face(0.15, 0.4, 0.1, 0.05),
    )
    return Figure(parts, Anchors((0.05, 0.71, 0.19), (0.15, 0.4, 0.1), (0.05, 0.17, 0.31, 0), (-0.2, 0.7)))


def _teapot() -> Figure:
    parts = (
        ring(-0.28, 0.32, 0.15, 0.16, 0.07, "second", 50, 310),
        blob([(0.2, 0.2), (0.32, 0.32), (0.36, 0.5), (0.44, 0.58), (0.5, 0.54), (0.46, 0.36), (0.38, 0.18), (0.2, 0.1)],
             "second"),
        box(-0.16, 0.0, 0.2, 0.08, 0.03, "second"),
        blob([(-0.3, 0.3), (-0.24, 0.48), (0.02, 0.58), (0.28, 0.48), (0.34, 0.3), (0.24, 0.1), (0.02, 0.05),
              (-0.2, 0.1)], "main", True),
        ellipse(0.02, 0.69, 0.05, 0.05, "main"),
        blob([(-0.18, 0.55), (-0.1, 0.62), (0.02, 0.65), (0.14, 0.62), (0.22, 0.55), (0.02, 0.52)], "second"),
        ellipse(0.1, 0.3, 0.18, 0.145, "main", inked=False),
        *face(0.1, 0.34, 0.1, 0.05),
    )  # fmt: skip
    return Figure(parts, Anchors((0.02, 0.68, 0.15), (0.1, 0.34, 0.1), (0.03, 0.12, 0.24, 0), (-0.13, 0.62)))


def _robot() -> Figure:
    parts = (
        stroke([(-0.04, 0.76), (-0.05, 0.84), (-0.08, 0.9)], 0.035, "ink", inked=False),
        ellipse(-0.085, 0.88, 0.045, 0.045, "second"),
        box(-0.2, 0.0, -0.02, 0.12, 0.05, "second"),
        box(0.05, 0.0, 0.25, 0.12, 0.05, "second"),
        stroke([(-0.22, 0.34), (-0.33, 0.26), (-0.34, 0.16)], 0.085, "second"),
        box(-0.24, 0.08, 0.24, 0.42, 0.06, "main", True),
        stroke([(0.23, 0.32), (0.35, 0.36), (0.41, 0.48)], 0.085, "second"),
        ring(0.42, 0.53, 0.065, 0.065, 0.045, "second", 130, 410),
        box(-0.27, 0.42, 0.29, 0.78, 0.09, "main"),
        box(-0.13, 0.48, 0.25, 0.72, 0.07, "screen"),
        ellipse(-0.02, 0.62, 0.055, 0.065, "glow", inked=False),
        ellipse(0.14, 0.62, 0.055, 0.065, "glow", inked=False),
        stroke([(0.0, 0.54), (0.04, 0.515), (0.08, 0.515), (0.12, 0.54)], 0.028, "glow", inked=False),
    )
    return Figure(parts, Anchors((0.03, 0.775, 0.18), (0.06, 0.62, 0.09), (0.0, 0.41, 0.24, 0), (-0.2, 0.8)))


def _car() -> Figure:
    parts = (
        blob([(-0.36, 0.36), (-0.27, 0.6), (-0.1, 0.68), (0.1, 0.66), (0.24, 0.54), (0.3, 0.36)], "second"),
        box(-0.25, 0.38, -0.09, 0.58, 0.05, "glass"),
        blob([(-0.05, 0.37), (-0.05, 0.58), (0.1, 0.59), (0.19, 0.5), (0.24, 0.37)], "glass"),
        blob([(-0.49, 0.22), (-0.46, 0.36), (-0.3, 0.41), (0.1, 0.41), (0.4, 0.38), (0.49, 0.26), (0.47, 0.12),
              (0.0, 0.09), (-0.46, 0.11)], "main", True),
        box(0.4, 0.1, 0.51, 0.18, 0.035, "second"),
        ellipse(0.43, 0.29, 0.06, 0.065, "glow"),
        ellipse(-0.46, 0.28, 0.03, 0.05, "red"),
        *(part for x in (-0.25, 0.24)
          for part in (ellipse(x, 0.115, 0.125, 0.125, "screen"), ellipse(x, 0.115, 0.06, 0.06, "second"))),
        *eye(0.03, 0.49, 0.048),
        *eye(0.15, 0.48, 0.045),
    )  # fmt: skip
    return Figure(parts, Anchors((-0.06, 0.67, 0.17), (0.09, 0.49, 0.068), (-0.02, 0.39, 0.3, 0), (-0.25, 0.64)))


def _flower() -> Figure:
    angles = (0, 51, 103, 154, 206, 257, 309)
    petal = ellipse(0.15, 0, 0.11, 0.085, "second")
    parts = (
        stroke([(0.0, 0.2), (-0.03, 0.35), (0.02, 0.45), (0.08, 0.55)], 0.06, "leaf"),
        blob([(-0.02, 0.32), (-0.14, 0.44), (-0.32, 0.42), (-0.2, 0.32)], "leaf"),
        blob([(-0.23, 0.0), (-0.25, 0.1), (-0.29, 0.27), (0.0, 0.28), (0.29, 0.27), (0.25, 0.1), (0.23, 0.0),
              (0.0, -0.01)], "main", True),
        box(-0.33, 0.24, 0.33, 0.33, 0.04, "second"),
        *(Part(translate(rotate(petal.points, angle), 0.1, 0.64), "second") for angle in angles),
        ellipse(0.1, 0.64, 0.15, 0.145, "main"),
        *eye(0.08, 0.66, 0.038),
        *eye(0.18, 0.66, 0.038),
        stroke([(0.09, 0.6), (0.12, 0.575), (0.15, 0.575), (0.18, 0.6)], 0.024, "ink", inked=False),
    )  # fmt: skip
    return Figure(parts, Anchors((0.09, 0.81, 0.15), (0.13, 0.66, 0.055), (0.01, 0.385, 0.14, 0), (-0.06, 0.8)))


def _house() -> Figure:
    parts = (
        box(-0.32, 0.5, -0.18, 0.84, 0.02, "main"),
        box(-0.34, 0.8, -0.16, 0.88, 0.02, "second"),
        box(-0.33, 0.0, 0.35, 0.5, 0.02, "main", True),
        polygon([(-0.44, 0.46), (-0.2, 0.78), (0.2, 0.78), (0.46, 0.46)], "second"),
        box(0.08, 0.0, 0.27, 0.25, 0.06, "wood"),
        ellipse(0.12, 0.12, 0.022, 0.022, "glow", inked=False),
        box(-0.17, 0.23, -0.02, 0.42, 0.03, "glass"),
        box(0.1, 0.29, 0.25, 0.42, 0.03, "glass"),
        *eye(-0.09, 0.32, 0.042),
        *eye(0.18, 0.35, 0.04),
    )
    return Figure(parts, Anchors((0.05, 0.775, 0.19), (0.045, 0.335, 0.13), (0.01, 0.2, 0.3, 0), (0.24, 0.74)))


FIGURES: Mapping[Shape, Figure] = {
    Shape.DOG: _dog(),
    Shape.CAT: _cat(),
    Shape.RABBIT: _rabbit(),
    Shape.BIRD: _bird(),
    Shape.FISH: _fish(),
    Shape.TURTLE: _turtle(),
    Shape.MUG: _mug(),
    Shape.TEAPOT: _teapot(),
    Shape.ROBOT: _robot(),
    Shape.CAR: _car(),
    Shape.FLOWER: _flower(),
    Shape.HOUSE: _house(),
}
"""Shape -> its parts and anchors."""
