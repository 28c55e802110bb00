"""Any picture that Pillow reads -> upright 8-bit RGB -> the arrays that the MLLM and the VAE want."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mllmsubj.errors import UserError
from mllmsubj.ops.patchify import TOKEN_PIXELS
from mllmsubj.typing import Float


@dataclass(frozen=True)
class ReferenceConfig:
    """How references are resized for the two branches."""

    long_side: int
    """Pixels of a single reference's long side for the VAE."""
    long_side_several: int
    """The same where there are several references."""
    max_references: int
    max_aspect: float
    """References longer than this times their short side are refused: their shape would not survive resizing."""
    mean: tuple[float, ...]
    """Mean and deviation per channel, of [0, 1] pixels, that the MLLM's vision tower was trained with."""
    std: tuple[float, ...]


def open_image(path: str | Path) -> Image.Image:
    """The picture in a file, as `to_rgb` gives it. Raises UserError if it is missing or no picture."""
    path = Path(path).expanduser()
    name = f"reference image {str(path)!r}"
    if not path.is_file():
        raise UserError(f"{name} is {'no file' if path.exists() else 'not there'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata and large files; the pixels are what counts
            with Image.open(path) as image:
                return to_rgb(image)
    except Image.DecompressionBombError:
        raise UserError(f"{name} has too many pixels; scale it down first") from None
    except UnidentifiedImageError:
        raise UserError(f"{name} is no picture, or in a format that Pillow does not read") from None
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, RuntimeError, struct.error, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} cannot be read as a picture: {reason}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """First frame, turned upright by its EXIF orientation, 8-bit RGB; transparency lies on white."""
    image.seek(0)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def mllm_tile(
    image: Image.Image, size: tuple[int, int], config: ReferenceConfig
) -> Float[np.ndarray, "height width 3"]:
    """One tile of `size` (height, width), squeezed to fit and normalised, as InternVL does with a single tile.

    Source: InternVL's `dynamic_preprocess` with one tile; bicubic.
    """
    pixels = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC), np.float32) / 255.0
    return (pixels - np.asarray(config.mean, np.float32)) / np.asarray(config.std, np.float32)


def vae_picture(image: Image.Image, several: bool, config: ReferenceConfig) -> Float[np.ndarray, "height width 3"]:
    """The reference in [-1, 1] at the VAE branch's size: long side as configured, sides multiples of 16."""
    long_side = config.long_side_several if several else config.long_side
    scale = long_side / max(image.size)
    width, height = (max(TOKEN_PIXELS, round(side * scale / TOKEN_PIXELS) * TOKEN_PIXELS) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized, np.float32) / 127.5 - 1.0


def check_references(images: list[Image.Image], config: ReferenceConfig) -> None:
    """Raises UserError for none, too many, or one too long and thin."""
    if not images:
        raise UserError("no reference image; give at least one with --reference=IMAGE")
    if len(images) > config.max_references:
        raise UserError(f"{len(images)} reference images; this model takes at most {config.max_references}")
    for i, image in enumerate(images, 1):
        if max(image.size) > config.max_aspect * min(image.size):
            width, height = image.size
            raise UserError(
                f"reference image {i} is {width}x{height}; crop it so that its long side is at most "
                f"{config.max_aspect:g} times its short side"
            )


def to_pil(pixels: Float[np.ndarray, "height width 3"]) -> Image.Image:
    """A picture from [-1, 1], clipped and rounded. Source: diffusers `VaeImageProcessor`."""
    return Image.fromarray(np.rint(np.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(np.uint8))


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Wider grey values to 8 bits: 16-bit modes by their range; "I" and "F" name none, so by the values' own."""
    ranges = (65535.0,) if mode.startswith("I;16") else (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    values = np.nan_to_num(values).astype(np.float64)
    top = next((top for top in ranges if values.max(initial=0) <= top), ranges[-1])
    return np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
