"""A benchmark's results as a folder: `metrics.json`, `samples.png` and `report.html`, written whole or not at all."""

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
    """What was judged, by what, and what came out."""

    benchmark: str
    checkpoint: str
    """As it was named."""
    fingerprint: str
    seed: int
    examples: int
    settings: Mapping[str, str]
    """What else a reader needs to know, by name: data, sampler, …"""
    config: str
    """All of it, as text."""
    numbers: Mapping[str, float]
    pictures: Mapping[str, np.ndarray]
    """Name -> [n, height, width, 3], 8 bits."""
    texts: Mapping[str, tuple[str, ...]]
    """Name of pictures -> what stands beside each."""
    meanings: Mapping[str, str]
    """Of numbers and pictures."""
    caution: str = ""
    """What makes the numbers say less than they seem to."""

    def metrics(self) -> dict[str, str | int | float | None]:
        """Flat; None where a number is not finite, which JSON cannot say."""
        return {
            "benchmark": self.benchmark,
            "checkpoint": self.fingerprint,
            "seed": self.seed,
            "examples": self.examples,
            **{name: value if math.isfinite(value) else None for name, value in self.numbers.items()},
        }


@dataclass(frozen=True)
class Line:
    """A number, with those named NAME/low, NAME/high and NAME/real, if there are such."""

    name: str
    value: float
    interval: str
    """In words, so `beside`: the 95 % interval, and what real pictures get."""
    beside: str


def lines(numbers: Mapping[str, float]) -> Iterator[Line]:
    """For people."""
    for name, value in numbers.items():
        base, _, side = name.rpartition("/")
        if base in numbers and side in SIDES:
            continue
        low, high, real = (numbers.get(f"{name}/{side}") for side in SIDES)
        known = low is not None and high is not None and math.isfinite(low)
        interval = f"{low:.3g} to {high:.3g}" if known else ""
        yield Line(name, value, interval, f"real pictures {real:.4g}" if real is not None else "")


def output_folder(output: str | None) -> Path:
    """The path in `--output`; raises UserError if no results could be written there.

    It may be missing, empty, or hold earlier results, which are then replaced.
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
    """Under a temporary name, then renamed; `page` is the report. Raises UserError if it cannot be written."""
    try:
        with replacing_folder(folder) as partial:
            (partial / "metrics.json").write_text(json.dumps(results.metrics(), indent=2, allow_nan=False) + "\n")
            (partial / "report.html").write_text(page, encoding="utf-8")
            for name, pictures in results.pictures.items():
                Image.fromarray(np.concatenate(list(pictures))).save(partial / f"{name}.png")
    except OSError as error:
        raise UserError(f"cannot write output {str(folder)!r}: {error.strerror or error}") from error
