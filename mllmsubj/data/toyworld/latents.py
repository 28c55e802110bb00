"""Pictures whose latents are known: the frozen VAE runs once over each of them, not once a step."""

import hashlib
import logging
import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from mllmsubj.data.example import Index
from mllmsubj.data.toyworld.examples import Example, Picture
from mllmsubj.data.toyworld.pictures import PictureSource
from mllmsubj.data.toyworld.source import ToyworldSource
from mllmsubj.errors import UserError
from mllmsubj.files import replacing
from mllmsubj.typing import Float

log = logging.getLogger("mllmsubj")

AT_ONCE = 64
"""Pictures that are encoded together."""

Moments = Float[np.ndarray, "two n c"]
"""Mean and deviation of a picture's patchified latents, float16."""


Encode = Callable[[UInt8[np.ndarray, "b height width 3"]], Float[np.ndarray, "b two n c"]]
"""Moments of 8-bit pictures."""


@runtime_checkable
class Pictures(Protocol):
    """Numbered pictures, drawn at one size; two that print alike are alike."""

    @property
    def size(self) -> int:
        """Pixels of their sides."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Picture: ...


@dataclass(frozen=True)
class Targets:
    """The pictures that follow the prompts of examples."""

    examples: ToyworldSource

    @property
    def size(self) -> int:
        return self.examples.size

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: SupportsIndex, /) -> Picture:
        return self.examples.example(number).target


@dataclass(frozen=True)
class EncodedPictures:
    """Pictures beside their moments, and those of the next view of the same subject, or its own again."""

    pictures: PictureSource
    name: str
    """Says what the moments are of; two sources that print alike are alike."""
    moments: Float[np.ndarray, "pictures two n c"] = field(repr=False)

    def __getitem__(self, number: SupportsIndex, /) -> tuple[Picture, Moments, Moments]:
        """Raises IndexError outside [0, length)."""
        index, views = operator.index(number), self.pictures.views
        following = index - index % views + (index + 1) % views
        return self.pictures[index], self.moments[index], self.moments[min(following, len(self.moments) - 1)]

    def index(self) -> Index:
        return self.pictures.index()


@dataclass(frozen=True)
class EncodedExamples:
    """Examples beside the moments of their targets."""

    examples: ToyworldSource
    name: str
    """See `EncodedPictures`."""
    moments: Float[np.ndarray, "examples two n c"] = field(repr=False)

    def __getitem__(self, number: SupportsIndex, /) -> tuple[Example, Moments]:
        """Raises IndexError outside [0, length)."""
        return self.examples.example(number), self.moments[operator.index(number)]

    def index(self) -> Index:
        return self.examples.index()


def encoded(
    pictures: Pictures, encode: Encode, encoder: str, folder: Path, threads: int
) -> tuple[str, Float[np.ndarray, "pictures two n c"]]:
    """A name of what they depend on, and the moments of all; kept in `folder` under that name, and found there again.

    `encoder`: text that names all that `encode` depends on. Raises UserError if they cannot be written or read.
    """
    digest = hashlib.sha256(f"{pictures} {encoder}".encode())
    digest.update(pictures[0].render(pictures.size).tobytes())  # how they are drawn may change
    name = digest.hexdigest()[:16]
    path = folder / f"latents-{name}.npy"
    moments = None if path.is_file() else _moments(pictures, encode, threads)
    try:
        if moments is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial, partial.open("wb") as file:
                np.save(file, moments)
        return name, np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot keep latents in {path}: {getattr(error, 'strerror', None) or error}; make room or delete the file"
        ) from None


def _moments(pictures: Pictures, encode: Encode, threads: int) -> Float[np.ndarray, "pictures two n c"]:
    log.info("encodes %d pictures, once", len(pictures))
    parts = []
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(pictures), AT_ONCE):
            numbers = np.minimum(np.arange(first, first + AT_ONCE), len(pictures) - 1)  # one shape, one program
            pixels = np.stack(list(pool.map(lambda i: pictures[i].render(pictures.size), numbers)))
            parts.append(encode(pixels)[: len(pictures) - first])
    return np.concatenate(parts)
