"""What a config says of training data."""

from dataclasses import dataclass
from typing import Literal

from mllmsubj.errors import UserError
from mllmsubj.ops.patchify import TOKEN_PIXELS


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and what is done to them; see configs/base.py for units."""

    source: str
    """What `data.sources.FORMS` lists."""
    split: str
    """Of toyworld and TFDS: "train" or "test"."""
    examples: int
    """How many toyworld draws; other sources have as many as they have."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of targets: each goes to the one nearest to its own aspect."""
    max_references: int
    """An example with more keeps its first ones."""
    prompt_tokens: int
    """Tokens of the MLLM's sequence for the prompt and the template's tail: all are padded to this."""
    swap: float
    """Probability that target and reference change places, where the example has one reference."""
    flip: float
    """Probability that a reference is mirrored."""
    crop: float
    """Smallest share of a reference's area that a random crop keeps; 1 crops nothing."""
    remove_background: float
    """Probability that a reference with a mask is put on white."""
    min_scores: tuple[tuple[str, float], ...]
    """(name, least value): examples below it, or without that score, are left out."""
    max_skipped: float
    """Share of unreadable examples at which a run stops."""
    threads: int
    """That read and decode, on each host."""
    prefetch: int
    """Batches that are made ahead, on each host."""
    cache: str
    """Folder where what the frozen towers say is kept, or empty."""
    cache_parts: Literal["latents", "all"]

    def __post_init__(self) -> None:
        for height, width in self.sizes:
            if height % TOKEN_PIXELS or width % TOKEN_PIXELS or min(height, width) < TOKEN_PIXELS:
                raise UserError(f"config key data.sizes has {height}x{width}; use multiples of {TOKEN_PIXELS}")
        if not self.sizes:
            raise UserError("config key data.sizes is empty; name at least one (height, width)")
        for name in ("swap", "flip", "remove_background", "max_skipped"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"config key data.{name} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0.0 < self.crop <= 1.0:
            raise UserError(f"config key data.crop is {self.crop}; it must be above 0, at most 1")
        for name in ("examples", "max_references", "prompt_tokens", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise UserError(f"config key data.{name} is {getattr(self, name)}; it must be at least 1")
