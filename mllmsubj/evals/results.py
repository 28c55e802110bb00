"""Results folder of a benchmark: `metrics.json`, `samples.png` and `report.html`, written whole or not at all."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mllmsubj.errors import UserError
from mllmsubj.io import replacing_folder

FILES = ("metrics.json", "report.html", "samples.png")
SIDES = ("low", "high", "real")


@dataclass(frozen=True)
class Results:
    """Results of a benchmark on one checkpoint, and the settings behind them."""

    benchmark: str
    checkpoint: str
    """Path or name, as the user gave it."""
    fingerprint: str
    seed: int
    examples: int
    settings: Mapping[str, str]
    """Other settings that the report lists, by name: data, sampler, …"""
    config: str
    """Whole config, as text."""
    numbers: Mapping[str, float]
    images: Mapping[str, np.ndarray]
    """Name -> images [n, height, width, 3], 8 bits."""
    texts: Mapping[str, tuple[str, ...]]
    """Name of images -> caption of each."""
    meanings: Mapping[str, str]
    """Description of each number and each set of images."""
    warning: str = ""
    """Warning on the validity of the numbers, or empty."""

    def metrics(self) -> dict[str, str | int | float | None]:
        """Returns a flat dict; numbers that are not finite, which JSON cannot represent, are None."""
        return {
            "benchmark": self.benchmark,
            "checkpoint": self.fingerprint,
            "seed": self.seed,
            "examples": self.examples,
            **{name: value if math.isfinite(value) else None for name, value in self.numbers.items()},
        }


@dataclass(frozen=True)
class Line:
    """Number, with those named NAME/low, NAME/high and NAME/real where they exist."""

    name: str
    value: float
    interval: str
    """95 % interval as text, or empty."""
    reference_value: str
    """Value of real images as text, or empty."""


def lines(numbers: Mapping[str, float]) -> Iterator[Line]:
    """Yields the numbers, with their intervals, as lines of a report."""
    for name, value in numbers.items():
        base, _, side = name.rpartition("/")
        if base in numbers and side in SIDES:
            continue
        low, high, real = (numbers.get(f"{name}/{side}") for side in SIDES)
        known = low is not None and high is not None and math.isfinite(low)
        interval = f"{low:.3g} to {high:.3g}" if known else ""
        yield Line(name, value, interval, f"real pictures {real:.4g}" if real is not None else "")


def output_folder(output: str | None) -> Path:
    """Returns the folder named in `--output`; raises UserError if no results could be written there.

    The folder may be missing, empty, or contain earlier results, which are then replaced.
    """
    if not output:
        raise UserError("no output; name the folder to write with --output=DIR")
    folder = Path(output).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output {output!r} is a file; name a folder")
    if folder.is_dir() and (other := sorted(path.name for path in folder.iterdir() if path.name not in FILES)):
        raise UserError(f"output {output!r} holds other files, such as {other[0]!r}; name a new folder")
    parent = next(parent for parent in folder.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write output {output!r}: {parent} is not a folder that can be written to")
    return folder


def write(results: Results, page: str, folder: Path) -> None:
    """Writes the results under a temporary name, then renames the folder; `page`: HTML of the report.

    Raises UserError if the folder cannot be written.
    """
    try:
        with replacing_folder(folder) as partial:
            (partial / "metrics.json").write_text(json.dumps(results.metrics(), indent=2, allow_nan=False) + "\n")
            (partial / "report.html").write_text(page, encoding="utf-8")
            for name, images in results.images.items():
                Image.fromarray(np.concatenate(list(images))).save(partial / f"{name}.png")
    except OSError as error:
        raise UserError(f"cannot write output {str(folder)!r}: {error.strerror or error}") from error
