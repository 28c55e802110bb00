"""Config sections `data`, `prompt` and `reference`: every key with its type, default and unit."""

from dataclasses import dataclass
from typing import Literal

from mllmsubj.errors import ConfigError
from mllmsubj.ops.patchify import TOKEN_PIXELS


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and what is done to them."""

    source: str = "toyworld"
    """A registered source ("toyworld"), FILE.jsonl, UNO-1M's FILE.json, a folder of ArrayRecord or parquet files, or
    tfds:NAME[:CONFIG][@DIR]."""
    split: str = "train"
    """Of registered sources and TFDS: "train" or "test"."""
    examples: int = 1_000_000
    """Number of examples of a registered source; other sources have as many as they have."""
    sizes: tuple[tuple[int, int], ...] = ((512, 512), (576, 448), (448, 576), (640, 400), (400, 640))
    """Heights and widths of targets, pixels: each target is resized to the one nearest to its own aspect ratio."""
    max_references: int = 1
    """References of an example that are used; the others are dropped."""
    prompt_tokens: int = 251
    """Tokens of the MLLM's sequence for the prompt and the end of the template: shorter prompts are padded, longer ones
    are skipped. With the empty prompt's 5, a tile's 256 and twice 1,024 of 512 x 512 pixels, 251 makes 2,560 tokens, a
    multiple of a TPU's 128 lanes."""
    swap: float = 0.0
    """Probability that target and reference are exchanged, in examples with one reference."""
    flip: float = 0.0
    """Probability that a reference is mirrored."""
    crop: float = 1.0
    """Smallest share of a reference's area that a random crop keeps; 1: no crop."""
    remove_background: float = 0.0
    """Probability that a reference with a mask is put on white."""
    min_scores: tuple[tuple[str, float], ...] = ()
    """Pairs (name, smallest value), such as (("dino", 0.7),): examples below it, or without a score, are left out."""
    max_skipped: float = 0.01
    """Share of unreadable examples at which training stops."""
    threads: int = 8
    """Threads that read and decode, on each host."""
    prefetch: int = 4
    """Batches that are prepared ahead, on each host."""
    cache: str = ""
    """Folder of cached features, outputs of the frozen encoders that are computed once a row; "": computed in each
    step. For data sets that repeat unchanged: a random crop is a new row."""
    cached_features: Literal["latents", "all"] = "latents"
    """"latents": of the VAE, 0.4 MB an example at 512 x 512 pixels. "all": the states of all layers of the MLLM and
    CLIP's vector, too, 106 MB at full size (29 x 512 x 3584, bfloat16)."""

    def __post_init__(self) -> None:
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
    """The chat template around a prompt."""

    system: str = "You are a helpful assistant."
    """System message. InternVL3's own is in Chinese; any will do as long as training and sampling agree."""
    max_tokens: int = 512
    """Longest prompt for the MLLM, template's tail included."""
    pad_to_multiple: int = 64
    """Prompts are padded to a multiple of this, so that few lengths are compiled."""
    clip_tokens: int = 77
    """Length of CLIP's sequence: 77."""
    pooled: Literal["prompt", "empty"] = "prompt"
    """What CLIP's pooled vector reads: "prompt", or "empty" for the empty prompt."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "pad_to_multiple", "clip_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config key prompt.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class ReferenceConfig:
    """How references are resized for the two branches."""

    long_side: int = 512
    """Pixels of a single reference's long side for the VAE."""
    long_side_multi: int = 320
    """The same where there are several references."""
    max_references: int = 4
    """References of one request."""
    max_aspect: float = 8.0
    """Largest ratio of long to short side; longer references are refused, since resizing would lose their shape."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean and deviation per channel, of [0, 1] pixels, that the MLLM's vision tower was trained with."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def vae_side(self, several: bool) -> int:
        """Long side of a reference for the VAE, where there are `several` or one."""
        return self.long_side_multi if several else self.long_side

    def square_side(self, several: bool) -> int:
        """Of the square that holds any such reference."""
        return -(-self.vae_side(several) // TOKEN_PIXELS) * TOKEN_PIXELS
