"""Plots of training runs and generated images for notebooks; they need matplotlib, of the extra "notebooks"."""

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mllmsubj.checkpoints.format import read_config
from mllmsubj.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 2.2
"""Height of an image in a row, inches."""
LETTERS_PER_INCH = 11
"""Letters of an image's name per inch."""
DPI = 110
SMOOTHING = 10
"""Number of all points divided by the window of the running mean."""
HELD_OUT = {
    "loss/both": "MLLM and VAE",
    "loss/mllm": "the MLLM",
    "loss/vae": "the VAE",
    "loss/none": "neither",
    "loss/all": "(mean, by shares)",
}
"""Metric of `evals.loss` -> tokens that the model attends to, as in the legend."""


def image_row(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Returns the images in one row, equally high, each below its name."""
    widths = [HEIGHT * picture.width / picture.height for picture in pictures.values()]
    names = [textwrap.fill(name, round(LETTERS_PER_INCH * width)) for name, width in zip(pictures, widths, strict=True)]
    figure = _figure(sum(widths), HEIGHT + 0.2 * (1 + max(name.count("\n") for name in names)))
    columns = figure.subplots(1, len(names), squeeze=False, width_ratios=widths)[0]
    for axes, name, picture in zip(columns, names, pictures.values(), strict=True):
        axes.imshow(np.asarray(picture.convert("RGB")), interpolation="nearest", aspect="auto")
        axes.set_title(name, fontsize="medium", verticalalignment="bottom")
        axes.set_axis_off()
    return _render(figure)


def loss_curves(workdir: str | Path) -> Image.Image:
    """Returns a plot of a run's training loss and, if evaluated, its held-out loss for each condition mode.

    Raises UserError if the folder is not the workdir of a run.
    """
    workdir = Path(workdir)
    try:
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"{workdir} has no metrics.jsonl; name the workdir of a run of mllmsubj train") from error
    border = read_config(workdir).train.stage1.steps
    held_out = {name: sees for name, sees in HELD_OUT.items() if any(name in line for line in lines)}
    figure = _figure(10.0 if held_out else 5.0, 3.0)
    axes = figure.subplots(1, 2 if held_out else 1, squeeze=False)[0]
    steps, losses = _curve(lines, "loss")
    axes[0].plot(steps, losses, color="C0", alpha=0.3)
    axes[0].plot(steps, _running_mean(losses), color="C0")
    _finish(axes[0], "training loss and its running mean", border)
    for name, sees in held_out.items():
        axes[1].plot(*_curve(lines, name), marker=".", label=sees)
    if held_out:
        axes[1].legend(title="the model sees")
        _finish(axes[1], "loss on held-out examples", border)
    return _render(figure)


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and finite values of one metric."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = np.asarray(points, np.float64).reshape(-1, 2).T
    return steps, values


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each value and those before it, over at most a tenth of all values."""
    window, sums = max(1, len(values) // SMOOTHING), np.cumsum(np.append(0.0, values))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _finish(axes: "Axes", title: str, border: int) -> None:
    axes.axvline(border, color="grey", linestyle=":")
    axes.annotate(" stage 2", (border, 0.95), xycoords=("data", "axes fraction"), color="grey", verticalalignment="top")
    axes.set_title(title)
    axes.set_xlabel("step")


def _figure(width: float, height: float) -> "Figure":
    """Returns an empty figure that does not use the notebook's backend; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=DPI, layout="constrained")


def _render(figure: "Figure") -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")
