"""Plot of a sweep's summary: one panel per metric, with one line per run and a dot at its value.

Rendered with Pillow, which is a dependency anyway.
"""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from mllmsubj.config.overrides import Overrides
from mllmsubj.sweeps.summary import Summary, better, shown

Units = int | float
Point = tuple[Units, Units]

SCALE = 2
"""Pixels per unit; all sizes below are in units."""
ACROSS = 3
"""Maximum number of panels in a row."""
PANEL, LINE, GAP, EDGE = 260, 22, 28, 20
HEAD, FOOT = 44, 26
"""Heights above and below a panel's lines, for its title and its axis."""
NUMBERS = 76
"""Width for the values, at the right of a panel."""
SIZE, SMALL = 13, 11
DOT = 4
INK, SOFT, RULE, ACCENT, PAPER = "#1c1e21", "#5f666e", "#dfe2e6", "#0b66c3", "#ffffff"
LABEL = 420
"""Maximum width of a label; longer ones are cut."""


def draw(summary: Summary) -> Image.Image:
    """Returns the plot. Runs without metrics are left out; the best value of each metric is in color."""
    rows = [row for row in summary.rows if row.metrics]
    labels = _labels(summary, [row.settings for row in rows])
    gutter = min(LABEL, max((math.ceil(_font(SIZE).getlength(label) / SCALE) for label in labels), default=0)) + 12
    metrics = summary.metrics
    across, down = min(ACROSS, max(len(metrics), 1)), math.ceil(len(metrics) / ACROSS)
    height = HEAD + LINE * len(rows) + FOOT
    size = (2 * EDGE + gutter + across * (PANEL + GAP) - GAP, 2 * EDGE + down * (height + GAP) - GAP)
    image = Image.new("RGB", (size[0] * SCALE, max(size[1], 2 * EDGE) * SCALE), PAPER)
    canvas = _Canvas(ImageDraw.Draw(image))
    for i, metric in enumerate(metrics):
        x, y = EDGE + gutter + i % ACROSS * (PANEL + GAP), EDGE + i // ACROSS * (height + GAP)
        if i % ACROSS == 0:
            for j, label in enumerate(labels):
                canvas.text(x - 12, y + HEAD + (j + 0.5) * LINE, _cut(label, gutter - 12), INK, "rm")
        _panel(canvas, (x, y), metric, [row.metrics.get(metric) for row in rows], summary.best(metric))
    return image


class _Canvas:
    """Canvas with coordinates in units."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw

    def text(self, x: Units, y: Units, text: str, colour: str, anchor: str, size: int = SIZE) -> None:
        self._draw.text((x * SCALE, y * SCALE), text, colour, _font(size), anchor)

    def line(self, start: Point, end: Point, colour: str) -> None:
        self._draw.line([(x * SCALE, y * SCALE) for x, y in (start, end)], colour, SCALE)

    def dot(self, x: Units, y: Units, colour: str) -> None:
        self._draw.circle((x * SCALE, y * SCALE), DOT * SCALE, colour)


def _panel(canvas: _Canvas, corner: Point, metric: str, values: Sequence[float | None], best: float | None) -> None:
    x, y = corner
    canvas.text(x, y + 8, metric, INK, "lm", SIZE + 1)
    note = f"{better(metric)} is better" if better(metric) else "what guessing gives"
    canvas.text(x, y + 26, note, SOFT, "lm", SMALL)
    top, bottom, width = y + HEAD, y + HEAD + LINE * len(values), PANEL - NUMBERS
    found = [value for value in values if value is not None]
    low, high, ticks = _axis(min(found), max(found))

    def place(value: float) -> float:
        return x + width * (value - low) / (high - low)

    for tick in ticks:
        canvas.line((place(tick), top), (place(tick), bottom), RULE)
        canvas.text(place(tick), bottom + 12, f"{tick:.6g}", SOFT, "mm", SMALL)
    for i, value in enumerate(values):
        middle = top + (i + 0.5) * LINE
        canvas.line((x, middle), (x + width, middle), RULE)
        if value is not None:
            colour = ACCENT if value == best else INK
            canvas.dot(place(value), middle, colour)
            canvas.text(x + PANEL, middle, shown(value), colour, "rm")


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Returns limits slightly wider than the range, and a few round numbers in it as ticks."""
    span = high - low or abs(high) * 0.1 or 1.0
    low, high = low - 0.1 * span, high + 0.1 * span
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= 4)
    return low, high, [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _labels(summary: Summary, settings: Sequence[Overrides]) -> list[str]:
    """Returns the label of each run: the settings that the sweep varies."""
    return [", ".join(f"{label} {one[key]}" for key, label in summary.labels.items()) for one in settings]


def _cut(text: str, room: Units) -> str:
    while text and _font(SIZE).getlength(text) / SCALE > room:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)
