"""What a dataset is: examples with random access, and an index that batches are planned from without reading them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from mllmsubj.errors import UserError

Pixels = bytes | np.ndarray
"""A picture: a whole file as Pillow reads it (JPEG, PNG, WebP, …), or 8-bit [height, width, 3]
(masks: [height, width])."""


@dataclass(frozen=True)
class Example:
    """Pictures of a subject, a prompt about it, and a picture that follows the prompt."""

    references: tuple[Pixels, ...]
    """At least one."""
    prompt: str
    target: Pixels
    subject: str = ""
    """Its class, such as "dog"; empty where nobody said."""
    masks: tuple[Pixels | None, ...] = ()
    """Where the subject is in each reference, white on black; none at all, or one entry a reference."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Quality by name, such as "dino" or "aesthetic"; filters read them from the index."""
    origin: str = ""
    """Where it came from, for messages: "pairs.jsonl:12" or "train-00003.parquet, row 7"."""


@dataclass(frozen=True)
class Index:
    """What is known of every example without reading its pictures."""

    width: np.ndarray
    """[n] int32, pixels of the target after EXIF rotation; 0 where it is known to be unreadable."""
    height: np.ndarray
    """[n] int32."""
    references: np.ndarray
    """[n] int32, how many."""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    """[n] float32 by name, NaN where an example lacks it."""


@runtime_checkable
class Source(Protocol):
    """A dataset; `repr` names it for good: the same text, the same examples in the same order."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Example:
        """Raises Unreadable if it cannot be read."""
        ...

    def index(self) -> Index: ...


class Unreadable(UserError):
    """One example that cannot be used: names where it came from and why; a run skips and counts it."""
