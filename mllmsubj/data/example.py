"""Interface of datasets: examples with random access, and an index from which batches are planned."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from mllmsubj.errors import UserError

Pixels = bytes | np.ndarray
"""An image: the contents of a file that Pillow reads (JPEG, PNG, WebP, …), or a uint8 array [height, width, 3]
(masks: [height, width])."""


@dataclass(frozen=True)
class Example:
    """Reference images of a subject, a prompt, and the target image of the subject that matches the prompt."""

    references: tuple[Pixels, ...]
    """Reference images, at least one."""
    prompt: str
    target: Pixels
    subject: str = ""
    """The subject's class, such as "dog"; empty if unknown."""
    masks: tuple[Pixels | None, ...] = ()
    """Mask of the subject in each reference, white on black: an empty tuple, or one entry per reference."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Quality scores by name, such as "dino" or "aesthetic"; filters read them from the index."""
    origin: str = ""
    """Origin for error messages: "pairs.jsonl:12" or "train-00003.parquet, row 7"."""


@dataclass(frozen=True)
class Index:
    """Properties of all examples that batches are planned from."""

    width: np.ndarray
    """[n] int32: target width in pixels after EXIF rotation; 0 if the target is known to be unreadable."""
    height: np.ndarray
    """[n] int32: target height in pixels, likewise."""
    references: np.ndarray
    """[n] int32: number of references."""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[n] float32 by name; NaN for examples without that score."""


@runtime_checkable
class Source(Protocol):
    """A dataset with random access; sources with equal `repr` have the same examples in the same order."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, number: int, /) -> Example:
        """Returns an example; raises Unreadable if it cannot be read."""
        ...

    def index(self) -> Index:
        """Returns the index of all examples."""
        ...


class Unreadable(UserError):
    """An example cannot be used; the message contains its origin and the reason. Training skips and counts it."""
