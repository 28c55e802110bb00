"""Pictures with cached latents, so that the frozen VAE encodes each only once, not at every step."""

import hashlib
import logging
import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from mllmsubj.data.example import Index
from mllmsubj.errors import UserError
from mllmsubj.io import replacing
from mllmsubj.toyworld.dataset.examples import Example, Picture
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.dataset.source import ToyworldSource
from mllmsubj.typing import Float, Int

log = logging.getLogger("mllmsubj")

BATCH_SIZE = 64
"""Batch size of the encoder."""

LatentStats = Float[np.ndarray, "two n c"]
"""Mean and standard deviation of a picture's patchified latents, float16."""


Encode = Callable[[UInt8[np.ndarray, "b height width 3"]], Float[np.ndarray, "b two n c"]]
"""Function that returns the latent mean and std of 8-bit pictures."""


@runtime_checkable
class Pictures(Protocol):
    """Indexable pictures of a fixed size; objects with equal `repr` must have equal pictures."""

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        ...

    def __len__(self) -> int:
        """Returns the number of pictures."""
        ...

    def __getitem__(self, number: int, /) -> Picture:
        """Returns a picture."""
        ...


@dataclass(frozen=True)
class Targets:
    """The targets of examples, as `Pictures`."""

    examples: ToyworldSource

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.examples.size

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.examples)

    def __getitem__(self, number: SupportsIndex, /) -> Picture:
        """Returns the target of an example; raises IndexError outside [0, length)."""
        return self.examples.example(number).target


@dataclass(frozen=True)
class EncodedPictures:
    """First view of each subject, with cached latents of its first two views; a single view's latents occur twice."""

    pictures: PictureSource
    name: str
    """Name that `cached_latents` returned for the latents; sources with equal `repr` have equal contents."""
    latent_stats: Float[np.ndarray, "pictures two n c"] = field(repr=False)

    def __getitem__(self, number: SupportsIndex, /) -> tuple[Picture, LatentStats, LatentStats]:
        """Returns a picture and the latents of both views; raises IndexError outside [0, subjects)."""
        views = self.pictures.views
        index = operator.index(number) * views
        following = min(index + (views > 1), len(self.latent_stats) - 1)
        return self.pictures[index], self.latent_stats[index], self.latent_stats[following]

    def index(self) -> Index:
        """Returns the size and number of references of every subject."""
        whole, firsts = self.pictures.index(), slice(None, None, self.pictures.views)
        return Index(whole.width[firsts], whole.height[firsts], whole.references[firsts])


@dataclass(frozen=True)
class EncodedExamples:
    """Examples with cached latents of their targets; those that are `Prompt.is_relational` occur `relations` times."""

    examples: ToyworldSource
    name: str
    """Name as in `EncodedPictures`."""
    latent_stats: Float[np.ndarray, "examples two n c"] = field(repr=False)
    relations: int

    @cached_property
    def _numbers(self) -> Int[np.ndarray, " rows"]:
        """Index of the example of each row, in increasing order."""
        prompts = (self.examples.example(number).prompt for number in range(len(self.examples)))
        times = [self.relations if prompt.is_relational else 1 for prompt in prompts]
        return np.repeat(np.arange(len(times)), times)

    def __getitem__(self, row: SupportsIndex, /) -> tuple[Example, LatentStats]:
        """Returns an example and its target's latents; raises IndexError outside [0, rows)."""
        index = operator.index(row)
        if not 0 <= index < len(self._numbers):
            raise IndexError(f"row {index} is outside of the {len(self._numbers)} rows")
        number = self._numbers[index]
        return self.examples.example(number), self.latent_stats[number]

    def index(self) -> Index:
        """Returns the size and number of references of every row."""
        whole = self.examples.index()
        return Index(whole.width[self._numbers], whole.height[self._numbers], whole.references[self._numbers])


def cached_latents(
    pictures: Pictures, encode: Encode, encoder: str, folder: Path, threads: int
) -> tuple[str, Float[np.ndarray, "pictures two n c"]]:
    """Returns a cache key and the latent mean and std of all pictures, which are cached in `folder`.

    `encoder`: text that identifies everything that `encode` depends on. `threads`: number of threads that render.
    Raises UserError if the cache cannot be written or read.
    """
    digest = hashlib.sha256(f"{pictures} {encoder}".encode())
    digest.update(pictures[0].render(pictures.size).tobytes())  # so that changes of the renderer change the key
    name = digest.hexdigest()[:16]
    path = folder / f"latents-{name}.npy"
    latent_stats = None if path.is_file() else _encode_all(pictures, encode, threads)
    try:
        if latent_stats is not None:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial, partial.open("wb") as file:
                np.save(file, latent_stats)
        return name, np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot keep latents in {path}: {getattr(error, 'strerror', None) or error}; make room or delete the file"
        ) from error


def _encode_all(pictures: Pictures, encode: Encode, threads: int) -> Float[np.ndarray, "pictures two n c"]:
    log.info("encodes %d pictures, once", len(pictures))
    parts = []
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(pictures), BATCH_SIZE):
            numbers = np.minimum(
                np.arange(first, first + BATCH_SIZE), len(pictures) - 1
            )  # one shape, so that it compiles once
            pixels = np.stack(list(pool.map(lambda i: pictures[i].render(pictures.size), numbers)))
            parts.append(encode(pixels)[: len(pictures) - first])
    return np.concatenate(parts)
