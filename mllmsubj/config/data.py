"""Config sections `data`, `prompt` and `reference`: every key with its type, default and unit."""

from dataclasses import dataclass
from typing import Literal

from mllmsubj.errors import ConfigError
from mllmsubj.ops.patchify import TOKEN_PIXELS


@dataclass(frozen=True)
class DataConfig:
    """Source of the examples and their preprocessing."""

    source: str = "toyworld"
    """A registered source ("toyworld"), FILE.jsonl, UNO-1M's FILE.json, a folder of ArrayRecord or parquet files, or
    tfds:NAME[:CONFIG][@DIR]."""
    split: str = "train"
    """Split of registered sources and TFDS: "train" or "test"."""
    examples: int = 1_000_000
    """Number of examples of a registered source; other sources have a fixed number."""
    sizes: tuple[tuple[int, int], ...] = ((512, 512), (576, 448), (448, 576), (640, 400), (400, 640))
    """Heights and widths of targets, pixels: each target is resized to the one nearest to its own aspect ratio."""
    max_references: int = 1
    """References of an example that are used; the others are dropped."""
    prompt_tokens: int = 251
    """Tokens of the MLLM's sequence for the prompt and the end of the template: shorter prompts are padded, longer ones
    are skipped. 251 and 5 for the empty prompt, 256 for a tile and 2 x 1,024 for two images of 512 x 512 pixels are
    2,560 tokens, a multiple of a TPU's 128 lanes."""
    swap: float = 0.0
    """Probability that target and reference are exchanged, in examples with one reference."""
    flip: float = 0.0
    """Probability that a reference is mirrored."""
    crop: float = 1.0
    """Smallest fraction of a reference's area that a random crop keeps; 1: no crop."""
    remove_background: float = 0.0
    """Probability that a reference with a mask gets a white background."""
    min_scores: tuple[tuple[str, float], ...] = ()
    """Pairs (name, smallest value), such as (("dino", 0.7),): examples below it, or without a score, are left out."""
    max_skipped: float = 0.01
    """Fraction of unreadable examples at which training stops."""
    threads: int = 8
    """Threads that read and decode, on each host."""
    prefetch: int = 4
    """Batches that are prepared ahead, on each host."""
    cache: str = ""
    """Folder of cached features, outputs of the frozen encoders that are computed once per row; "": no cache. Useful
    for data without random augmentation: a random crop is a new row."""
    cached_features: Literal["latents", "all"] = "latents"
    """"latents": latents of the VAE, 0.4 MB per example at 512 x 512 pixels; "all": also the hidden states of all
    layers of the MLLM and CLIP's pooled vector, 106 MB at full size (29 x 512 x 3584, bfloat16)."""

    def __post_init__(self) -> None:
        """Raises ConfigError for values out of range."""
        for height, width in self.sizes:
            if height % TOKEN_PIXELS or width % TOKEN_PIXELS or min(height, width) < TOKEN_PIXELS:
                raise ConfigError(f"config key data.sizes has {height}x{width}; use multiples of {TOKEN_PIXELS}")
        if not self.sizes:
            raise ConfigError("config key data.sizes is empty; name at least one (height, width)")
        for name in ("swap", "flip", "remove_background", "max_skipped"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"config key data.{name} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0.0 < self.crop <= 1.0:
            raise ConfigError(f"config key data.crop is {self.crop}; it must be above 0, at most 1")
        for name in ("examples", "max_references", "prompt_tokens", "threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config key data.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class PromptConfig:
    """Chat template around a prompt, and lengths of token sequences."""

    system: str = "You are a helpful assistant."
    """System message, which must be the same in training and sampling; InternVL3's own is in Chinese."""
    max_tokens: int = 512
    """Maximum tokens of a prompt for the MLLM, including the end of the template."""
    pad_to_multiple: int = 64
    """Prompts are padded to a multiple of this, so that few lengths are compiled."""
    clip_tokens: int = 77
    """Length of CLIP's token sequence; released models use 77."""
    pooled: Literal["prompt", "empty"] = "prompt"
    """Input of CLIP's pooled vector: "prompt", or "empty" for the empty prompt."""

    def __post_init__(self) -> None:
        """Raises ConfigError for values below 1."""
        for name in ("max_tokens", "pad_to_multiple", "clip_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config key prompt.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class ReferenceConfig:
    """Resizing of references for the VAE, and normalization for the MLLM."""

    long_side: int = 512
    """Long side of a single reference for the VAE, pixels."""
    long_side_multi: int = 320
    """Long side of each of several references for the VAE, pixels."""
    max_references: int = 4
    """Maximum number of references of one request."""
    max_aspect: float = 8.0
    """Largest ratio of long to short side; references above it are an error, since resizing would distort them."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean and, below, standard deviation per channel of [0, 1] pixels, as the MLLM's vision tower was trained with."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def vae_side(self, several: bool) -> int:
        """Returns the long side of a reference for the VAE, pixels; `several`: whether there are several references."""
        return self.long_side_multi if several else self.long_side

    def square_side(self, several: bool) -> int:
        """Returns the side, in pixels, of the smallest square of whole tokens that contains any such reference."""
        return -(-self.vae_side(several) // TOKEN_PIXELS) * TOKEN_PIXELS
