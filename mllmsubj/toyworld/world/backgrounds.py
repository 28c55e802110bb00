"""Backgrounds by day, at sunset and at night; images are cached per size."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from mllmsubj.toyworld.world.geometry import Number
from mllmsubj.toyworld.world.identity import Rgb
from mllmsubj.toyworld.world.scene import Background, Time

LIGHT: Mapping[Time, tuple[float, float, float]] = {
    Time.DAY: (1.0, 1.0, 1.0),
    Time.SUNSET: (1.0, 0.74, 0.6),
    Time.NIGHT: (0.36, 0.42, 0.64),
}
"""Factors on red, green and blue of everything that does not emit light."""

SKY: Mapping[Time, tuple[Rgb, Rgb]] = {
    Time.DAY: ((108, 184, 246), (214, 238, 252)),
    Time.SUNSET: ((116, 76, 148), (255, 158, 84)),
    Time.NIGHT: ((12, 16, 48), (44, 56, 108)),
}
"""Colors of the sky at the top and at the horizon."""

HORIZON = 0.56
"""Default height of the horizon, in unit coordinates from the top."""


class Canvas:
    """Square image with drawing methods in unit coordinates, y down, under the light of a time of day."""

    def __init__(self, size: int, time: Time) -> None:
        """Initializes a black image of `size` pixels square."""
        self.size, self.time = size, time
        self.image = Image.new("RGB", (size, size))
        self._draw = ImageDraw.Draw(self.image)

    def lit(self, rgb: Rgb) -> Rgb:
        """Returns a color under the light of the time of day."""
        r, g, b = (round(value * factor) for value, factor in zip(rgb, LIGHT[self.time], strict=True))
        return r, g, b

    def gradient(self, top: Rgb, low: Rgb, y0: Number = 0.0, y1: Number = 1.0) -> None:
        """Fills the rows from y0 to y1 with a vertical gradient."""
        a, b = round(y0 * self.size), round(y1 * self.size)
        t = np.linspace(0, 1, max(b - a, 1))[:, None]
        column = np.rint(np.asarray(top) * (1 - t) + np.asarray(low) * t).astype(np.uint8)
        self.image.paste(Image.fromarray(np.repeat(column[:, None], self.size, 1)), (0, a))

    def sky(self, low: Number = HORIZON, sun: Number | None = 0.8, at: Number = 0.16) -> None:
        """Draws the sky of the time of day down to `low`, with its sun or moon at (sun, at), or neither for None."""
        self.gradient(*SKY[self.time], 0.0, low)
        if self.time is Time.NIGHT:
            self.stars(low)
        if sun is not None:
            self.sun(sun, at, low)

    def stars(self, low: Number) -> None:
        """Draws stars above `low`; their pattern is the same for every background."""
        places = np.random.default_rng(7).random((26, 2)) * (1.0, low)
        for x, y in places:
            self.disc(x, y, 0.006, (255, 255, 235))

    def sun(self, x: Number, y: Number, low: Number) -> None:
        """Draws, by time of day, a sun, a large sun just above `low`, or a crescent moon."""
        if self.time is Time.DAY:
            self.disc(x, y, 0.085, (255, 240, 170))
            self.disc(x, y, 0.065, (255, 222, 70))
        elif self.time is Time.SUNSET:
            self.disc(x, low - 0.09, 0.14, (255, 190, 100))
            self.disc(x, low - 0.09, 0.11, (255, 92, 60))
        else:
            angle = np.radians(np.linspace(-110, 80, 20))
            outer = np.stack([np.cos(angle), np.sin(angle)], 1) * 0.075
            inner = outer[::-1] * (0.45, 0.9) - (0.012, 0.004)
            self.shape([(x + dx, y + dy) for dx, dy in np.concatenate([outer, inner]).tolist()], (250, 244, 205))

    def rectangle(self, x0: Number, y0: Number, x1: Number, y1: Number, rgb: Rgb) -> None:
        """Draws a filled rectangle."""
        self.shape([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], rgb)

    def disc(self, x: Number, y: Number, r: Number, rgb: Rgb, ry: Number | None = None) -> None:
        """Draws a filled disc of radius `r`, or an ellipse with half axes `r` and `ry`."""
        ry = r if ry is None else ry
        s = self.size
        self._draw.ellipse([(x - r) * s, (y - ry) * s, (x + r) * s, (y + ry) * s], fill=rgb)

    def shape(self, points: Sequence[tuple[Number, Number]], rgb: Rgb) -> None:
        """Draws a filled polygon."""
        self._draw.polygon([(x * self.size, y * self.size) for x, y in points], fill=rgb)

    def hill(self, base: Number, height: Number, waves: Number, phase: Number, rgb: Rgb) -> None:
        """Fills the area below a sine wave down to the bottom."""
        x = np.linspace(0, 1, 41)
        y = base - height * np.sin(waves * x + phase)
        self.shape([*zip(x.tolist(), y.tolist(), strict=True), (1, 1), (0, 1)], rgb)


def _beach(c: Canvas) -> None:
    c.sky(0.46, 0.82)
    c.gradient(c.lit((40, 130, 205)), c.lit((100, 205, 225)), 0.46, 0.64)
    for x, y in ((0.1, 0.5), (0.35, 0.53), (0.62, 0.5), (0.8, 0.55)):
        c.rectangle(x, y, x + 0.12, y + 0.008, c.lit((190, 235, 245)))
    c.hill(0.615, 0.015, 8, 1, c.lit((240, 250, 250)))
    c.hill(0.635, 0.015, 8, 1, c.lit((240, 216, 160)))
    for x, y in ((0.08, 0.75), (0.5, 0.7), (0.9, 0.8), (0.3, 0.97), (0.7, 0.93)):
        c.disc(x, y, 0.012, c.lit((214, 184, 128)), 0.006)
    c.shape([(0.02, 0.46), (0.05, 0.4), (0.13, 0.38), (0.2, 0.46)], c.lit((110, 150, 100)))


def _snow(c: Canvas) -> None:
    c.sky(HORIZON, 0.78)
    for x, h in ((0.0, 0.3), (0.28, 0.36), (0.62, 0.32), (0.95, 0.36)):
        c.shape([(x - 0.26, 0.6), (x, 0.6 - h), (x + 0.26, 0.6)], c.lit((140, 160, 190)))
        c.shape([(x - 0.09, 0.6 - h * 0.66), (x, 0.6 - h), (x + 0.09, 0.6 - h * 0.66), (x, 0.6 - h * 0.56)],
                c.lit((245, 250, 255)))  # fmt: skip
    c.hill(0.56, 0.025, 7, 0.5, c.lit((216, 230, 244)))
    c.hill(0.68, 0.03, 5, 2.0, c.lit((240, 246, 252)))
    for x, y in np.random.default_rng(3).random((34, 2)):
        c.disc(x, y, 0.009, c.lit((255, 255, 255)))


def _forest(c: Canvas) -> None:
    c.sky(HORIZON, 0.5)
    c.rectangle(0, 0.3, 1, 0.6, c.lit((92, 140, 96)))
    for x, y, r in ((0.05, 0.3, 0.13), (0.26, 0.27, 0.11), (0.74, 0.27, 0.12), (0.95, 0.3, 0.13), (0.5, 0.33, 0.1)):
        c.disc(x, y, r, c.lit((92, 140, 96)))
    for x, w in ((0.06, 0.035), (0.22, 0.025), (0.4, 0.02), (0.6, 0.02), (0.79, 0.026), (0.94, 0.035)):
        c.rectangle(x - w, 0.1, x + w, 0.62, c.lit((92, 66, 48)))
    for x, y, r in ((0.04, 0.07, 0.17), (0.24, 0.04, 0.14), (0.42, 0.0, 0.1), (0.6, 0.0, 0.1), (0.78, 0.04, 0.14),
                    (0.97, 0.07, 0.17)):  # fmt: skip
        c.disc(x, y, r, c.lit((44, 104, 60)))
    c.hill(0.59, 0.012, 20, 0, c.lit((74, 112, 62)))
    c.hill(0.66, 0.012, 14, 1, c.lit((96, 128, 70)))
    for x, y in ((0.15, 0.72), (0.5, 0.68), (0.85, 0.74), (0.3, 0.93), (0.68, 0.96)):
        c.shape(
            [(x - 0.03, y), (x - 0.02, y - 0.035), (x, y), (x + 0.02, y - 0.035), (x + 0.03, y)], c.lit((60, 94, 52))
        )


def _city(c: Canvas) -> None:
    c.sky(0.6, 0.5, 0.12)
    window: Rgb = (255, 226, 130) if c.time is Time.NIGHT else c.lit((176, 206, 224))
    towers = ((0.0, 0.16, 0.2, 150), (0.17, 0.14, 0.34, 124), (0.32, 0.13, 0.14, 140), (0.56, 0.14, 0.3, 126),
              (0.69, 0.15, 0.1, 148), (0.85, 0.16, 0.24, 130))  # fmt: skip
    for x, w, top, grey in towers:
        c.rectangle(x, top, x + w, 0.62, c.lit((grey, grey - 6, grey + 8)))
        for i in range(3):
            for j in range(int((0.54 - top) / 0.07)):
                x0, y0 = x + 0.02 + i * (w - 0.03) / 3, top + 0.03 + j * 0.07
                c.rectangle(x0, y0, x0 + 0.022, y0 + 0.035, window)
    c.rectangle(0, 0.6, 1, 0.67, c.lit((176, 172, 170)))
    c.rectangle(0, 0.67, 1, 1, c.lit((96, 98, 108)))
    for x in (0.02, 0.27, 0.52, 0.77):
        c.rectangle(x, 0.82, x + 0.14, 0.84, c.lit((232, 228, 210)))


def _moon(c: Canvas) -> None:
    c.gradient((8, 8, 20), (30, 28, 48), 0, 0.6)
    c.stars(0.56)
    if c.time is Time.DAY:
        c.disc(0.16, 0.13, 0.1, (255, 250, 220))
    elif c.time is Time.SUNSET:
        c.gradient((8, 8, 20), (196, 90, 60), 0.25, 0.6)
        c.disc(0.16, 0.5, 0.11, (255, 120, 70))
    c.disc(0.8, 0.2, 0.13, (52, 122, 214))
    for x, y, r in ((0.77, 0.16, 0.05), (0.84, 0.24, 0.045), (0.75, 0.25, 0.03)):
        c.disc(x, y, r, (92, 170, 96))
    c.hill(0.57, 0.02, 6, 0.8, c.lit((190, 190, 196)))
    for x, y, r in ((0.12, 0.68, 0.08), (0.55, 0.63, 0.05), (0.86, 0.74, 0.1), (0.38, 0.9, 0.11), (0.76, 0.94, 0.06)):
        c.disc(x, y, r, c.lit((150, 150, 158)), r * 0.42)
        c.disc(x, y + 0.012, r * 0.86, c.lit((170, 170, 178)), r * 0.32)


def _room(c: Canvas) -> None:
    c.rectangle(0, 0, 1, 0.6, c.lit((238, 216, 188)))
    for x in np.arange(0.05, 1.0, 0.14):
        c.rectangle(x, 0, x + 0.05, 0.6, c.lit((230, 204, 172)))
    c.rectangle(0.08, 0.08, 0.46, 0.42, c.lit((250, 246, 238)))
    pane = Canvas(round(0.34 * c.size), c.time)
    pane.sky(1.0, 0.7, 0.3)
    c.image.paste(pane.image.crop((0, 0, pane.size, round(0.3 * c.size))), (round(0.1 * c.size), round(0.1 * c.size)))
    c.rectangle(0.262, 0.1, 0.278, 0.4, c.lit((250, 246, 238)))
    c.rectangle(0.1, 0.242, 0.44, 0.258, c.lit((250, 246, 238)))
    c.rectangle(0.62, 0.12, 0.9, 0.34, c.lit((120, 84, 62)))
    c.rectangle(0.645, 0.145, 0.875, 0.315, c.lit((206, 226, 214)))
    c.shape([(0.65, 0.31), (0.74, 0.2), (0.8, 0.27), (0.83, 0.23), (0.87, 0.31)], c.lit((120, 160, 140)))
    c.rectangle(0, 0.56, 1, 0.6, c.lit((250, 242, 230)))
    c.rectangle(0, 0.6, 1, 1, c.lit((176, 128, 88)))
    for y in (0.68, 0.78, 0.9):
        c.rectangle(0, y, 1, y + 0.008, c.lit((150, 104, 70)))
    c.disc(0.5, 0.86, 0.42, c.lit((168, 96, 96)), 0.11)
    c.disc(0.5, 0.86, 0.36, c.lit((206, 150, 136)), 0.085)


def _desert(c: Canvas) -> None:
    c.sky(0.62, 0.2)
    for x, w, top in ((0.62, 0.3, 0.34), (0.2, 0.18, 0.42)):
        c.shape([(x - w / 2, 0.6), (x - w / 3, top), (x + w / 3, top), (x + w / 2, 0.6)], c.lit((190, 112, 76)))
        c.rectangle(x - w / 3, top + 0.05, x + w / 3, top + 0.08, c.lit((168, 92, 62)))
    c.hill(0.55, 0.03, 6, 2.2, c.lit((236, 178, 104)))
    c.hill(0.68, 0.045, 5, 0.2, c.lit((222, 158, 84)))
    c.hill(0.86, 0.03, 6, 3.0, c.lit((236, 178, 104)))
    for x, y, h in ((0.08, 0.62, 0.24), (0.93, 0.6, 0.2)):
        green = c.lit((72, 132, 82))
        c.rectangle(x - 0.022, y - h, x + 0.022, y, green)
        c.disc(x, y - h, 0.022, green)
        c.rectangle(x + 0.02, y - h * 0.5, x + 0.06, y - h * 0.4, green)
        c.rectangle(x + 0.04, y - h * 0.75, x + 0.065, y - h * 0.4, green)


def _sea(c: Canvas) -> None:
    tops: dict[Time, tuple[Rgb, Rgb]] = {
        Time.DAY: ((120, 226, 236), (16, 108, 176)),
        Time.SUNSET: ((255, 170, 110), (96, 62, 130)),
        Time.NIGHT: ((22, 54, 110), (8, 16, 52)),
    }
    top, low = tops[c.time]
    c.gradient(top, low)
    rays = [tuple(round(0.8 * a + 0.2 * 255) for a in top)] if c.time is not Time.NIGHT else []
    for ray in rays:
        for x in (0.1, 0.42, 0.74):
            c.shape([(x, 0), (x + 0.1, 0), (x - 0.02, 0.5), (x - 0.1, 0.5)], (ray[0], ray[1], ray[2]))
    for x, y, r in ((0.12, 0.3, 0.03), (0.16, 0.2, 0.02), (0.86, 0.4, 0.03), (0.9, 0.28, 0.022), (0.55, 0.12, 0.02)):
        c.disc(x, y, r, c.lit((220, 244, 250)))
        c.disc(x, y, r * 0.72, c.lit((150, 210, 232)))
    c.hill(0.74, 0.03, 7, 0.6, c.lit((216, 196, 148)))
    for x, h in ((0.05, 0.3), (0.12, 0.22), (0.88, 0.24), (0.95, 0.32)):
        steps = np.linspace(0, 1, 12)
        side = 0.02 * np.sin(steps * 9)
        left = [(x + s - 0.018 * (1 - t), 0.78 - h * t) for s, t in zip(side, steps, strict=True)]
        right = [(x + s + 0.018 * (1 - t), 0.78 - h * t) for s, t in zip(side, steps, strict=True)]
        c.shape([*left, *right[::-1]], c.lit((52, 140, 96)))
    c.shape([(0.68, 0.75), (0.7, 0.64), (0.73, 0.7), (0.76, 0.62), (0.78, 0.76)], c.lit((226, 110, 130)))


def _meadow(c: Canvas) -> None:
    c.sky(HORIZON, 0.2)
    for x, y in ((0.6, 0.14), (0.88, 0.24)):
        for dx, r in ((-0.07, 0.04), (0.0, 0.055), (0.07, 0.04)):
            c.disc(x + dx, y, r, c.lit((250, 250, 252)))
    c.hill(0.5, 0.06, 5, 0.3, c.lit((142, 196, 104)))
    c.hill(0.58, 0.03, 6, 2.4, c.lit((122, 184, 84)))
    c.hill(0.7, 0.02, 7, 0.4, c.lit((142, 204, 94)))
    flowers: tuple[Rgb, ...] = ((255, 255, 255), (255, 214, 90), (244, 140, 170))
    for i, (x, y) in enumerate(np.random.default_rng(12).random((26, 2)) * (1, 0.38) + (0, 0.62)):
        c.disc(x, y, 0.011, c.lit(flowers[i % 3]))


def _castle(c: Canvas) -> None:
    c.sky(0.6, 0.5, 0.14)
    stone, dark = c.lit((170, 160, 164)), c.lit((134, 124, 132))
    window: Rgb = (255, 214, 110) if c.time is Time.NIGHT else c.lit((70, 62, 78))
    c.rectangle(0.1, 0.34, 0.9, 0.62, stone)
    for x in np.arange(0.1, 0.9, 0.1):
        c.rectangle(x, 0.3, x + 0.05, 0.35, stone)
    for x, top in ((0.1, 0.16), (0.9, 0.16)):
        c.rectangle(x - 0.1, top, x + 0.1, 0.62, dark)
        c.shape([(x - 0.13, top), (x, top - 0.15), (x + 0.13, top)], c.lit((104, 84, 140)))
        c.rectangle(x - 0.022, top + 0.08, x + 0.022, top + 0.16, window)
    c.disc(0.5, 0.5, 0.08, window)
    c.rectangle(0.42, 0.5, 0.58, 0.62, window)
    c.hill(0.61, 0.01, 9, 0, c.lit((112, 148, 96)))
    c.shape([(0.42, 0.61), (0.58, 0.61), (0.86, 1.0), (0.14, 1.0)], c.lit((196, 180, 152)))


PLACES: Mapping[Background, Callable[[Canvas], None]] = {
    Background.BEACH: _beach,
    Background.SNOW: _snow,
    Background.FOREST: _forest,
    Background.CITY: _city,
    Background.MOON: _moon,
    Background.ROOM: _room,
    Background.DESERT: _desert,
    Background.SEA: _sea,
    Background.MEADOW: _meadow,
    Background.CASTLE: _castle,
}
"""Drawing function of each background."""


@lru_cache(maxsize=64)
def place(background: Background, time: Time, size: int) -> Image.Image:
    """Returns a background, `size` pixels square; the image is cached, so that callers must not draw on it."""
    canvas = Canvas(size, time)
    PLACES[background](canvas)
    return canvas.image
