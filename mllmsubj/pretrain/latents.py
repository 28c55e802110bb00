"""Pictures whose latents are known: the frozen VAE runs once over each of them, not once a step."""

import hashlib
import logging
import operator
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from mllmsubj.data.example import Index
from mllmsubj.data.toyworld import Picture
from mllmsubj.data.toyworld.pictures import PictureSource
from mllmsubj.sharding import flatten
from mllmsubj.typing import Float, Int, Params

log = logging.getLogger("mllmsubj")

AT_ONCE = 64
"""Pictures that are encoded together."""

Moments = Float[np.ndarray, "two n c"]
"""Mean and deviation of a picture's patchified latents, float16."""


@dataclass(frozen=True)
class EncodedPictures:
    """Pictures beside their moments."""

    pictures: PictureSource
    moments: Float[np.ndarray, "pictures two n c"]

    def __getitem__(self, number: SupportsIndex, /) -> tuple[Picture, Moments]:
        return self.pictures[number], self.moments[operator.index(number)]

    def index(self) -> Index:
        return self.pictures.index()


def encoded(
    pictures: PictureSource,
    vae: Params,
    encode: Callable[[Int[np.ndarray, "b height width 3"]], Float[np.ndarray, "b two n c"]],
    folder: Path,
    threads: int,
) -> EncodedPictures:
    """All of them; the moments are kept in `folder` under a name that says what they depend on, and found there again.

    `encode`: moments, float16, of 8-bit pictures, by the parameters `vae`.
    """
    digest = hashlib.sha256(repr(pictures).encode())
    for name, leaf in sorted(flatten(vae)):
        digest.update(name.encode() + np.asarray(leaf).tobytes())
    path = folder / f"latents-{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
        log.info("encodes %d pictures, once", len(pictures))
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            _write(partial, pictures, encode, threads)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return EncodedPictures(pictures, np.load(path, mmap_mode="r"))


def _write(
    path: Path,
    pictures: PictureSource,
    encode: Callable[[Int[np.ndarray, "b height width 3"]], Float[np.ndarray, "b two n c"]],
    threads: int,
) -> None:
    file = None
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(pictures), AT_ONCE):
            numbers = np.minimum(np.arange(first, first + AT_ONCE), len(pictures) - 1)  # one shape, one program
            moments = encode(np.stack(list(pool.map(lambda i: pictures[i].render(pictures.size), numbers))))
            if file is None:
                shape = (len(pictures), *moments.shape[1:])
                file = np.lib.format.open_memmap(path, "w+", np.float16, shape)
            file[first : first + AT_ONCE] = moments[: len(pictures) - first]
    assert file is not None
    file.flush()
