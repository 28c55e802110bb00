"""Second objects, in figure coordinates like the subjects, in fixed colors."""

from collections.abc import Mapping

from mllmsubj.toyworld.world.geometry import Part, blob, box, ellipse, polygon, ring, stroke
from mllmsubj.toyworld.world.scene import Thing

THINGS: Mapping[Thing, tuple[Part, ...]] = {
    Thing.NONE: (),
    Thing.BALL: (
        ellipse(0, 0.3, 0.3, 0.3, "white"),
        blob(
            [(-0.14, 0.56), (0.02, 0.44), (0.02, 0.16), (-0.14, 0.04), (-0.28, 0.2), (-0.28, 0.4)], "red", inked=False
        ),
        blob([(0.16, 0.55), (0.28, 0.4), (0.28, 0.2), (0.16, 0.05), (0.12, 0.3)], "blue", inked=False),
        ellipse(0.0, 0.5, 0.06, 0.04, "amber", inked=False),
    ),
    Thing.TREE: (
        box(-0.08, 0.0, 0.08, 0.4, 0.03, "wood"),
        polygon([(-0.4, 0.28), (0.0, 0.72), (0.4, 0.28)], "leaf"),
        polygon([(-0.32, 0.56), (0.0, 0.98), (0.32, 0.56)], "leaf"),
        polygon([(-0.24, 0.84), (0.0, 1.2), (0.24, 0.84)], "leaf"),
    ),
    Thing.BOX: (
        box(-0.3, 0.0, 0.3, 0.44, 0.02, "card"),
        box(-0.34, 0.42, 0.34, 0.56, 0.02, "card"),
        box(-0.06, 0.0, 0.06, 0.56, 0.0, "red", inked=False),
        ring(-0.1, 0.64, 0.09, 0.06, 0.05, "red"),
        ring(0.1, 0.64, 0.09, 0.06, 0.05, "red"),
    ),
    Thing.BALLOON: (
        stroke([(0.0, 0.5), (0.04, 0.34), (-0.04, 0.18), (0.0, 0.0)], 0.03, "ink", inked=False),
        polygon([(-0.06, 0.46), (0.06, 0.46), (0.0, 0.56)], "red"),
        blob([(0.0, 0.52), (0.22, 0.7), (0.26, 0.95), (0.0, 1.16), (-0.26, 0.95), (-0.22, 0.7)], "red"),
        ellipse(-0.1, 0.96, 0.05, 0.09, "white", -20, inked=False),
    ),
    Thing.UMBRELLA: (
        box(-0.025, 0.0, 0.025, 0.8, 0.02, "wood"),
        polygon([(-0.48, 0.62), (-0.34, 0.86), (0.0, 1.0), (0.34, 0.86), (0.48, 0.62)], "white"),
        polygon([(-0.48, 0.62), (-0.34, 0.86), (0.0, 1.0), (-0.18, 0.62)], "blue", inked=False),
        polygon([(0.48, 0.62), (0.34, 0.86), (0.0, 1.0), (0.18, 0.62)], "blue", inked=False),
        ellipse(0, 1.02, 0.035, 0.035, "amber"),
    ),
    Thing.LAMP: (
        box(-0.16, 0.0, 0.16, 0.07, 0.03, "screen"),
        box(-0.035, 0.05, 0.035, 0.85, 0.01, "screen"),
        polygon([(-0.14, 0.82), (0.14, 0.82), (0.2, 1.1), (-0.2, 1.1)], "lamp"),
        polygon([(-0.26, 1.08), (0.26, 1.08), (0.0, 1.24)], "screen"),
    ),
    Thing.MUSHROOM: (
        box(-0.14, 0.0, 0.14, 0.36, 0.06, "white"),
        blob([(-0.38, 0.3), (-0.3, 0.54), (0.0, 0.68), (0.3, 0.54), (0.38, 0.3), (0.0, 0.26)], "red"),
        ellipse(-0.18, 0.44, 0.06, 0.055, "white", inked=False),
        ellipse(0.04, 0.54, 0.065, 0.055, "white", inked=False),
        ellipse(0.22, 0.4, 0.05, 0.05, "white", inked=False),
    ),
}
"""Second object -> its parts from back to front."""
