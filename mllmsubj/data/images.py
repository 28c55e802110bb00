"""Conversion of images that Pillow reads to upright 8-bit RGB, and preprocessing for the MLLM and the VAE."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mllmsubj.config.data import ReferenceConfig
from mllmsubj.errors import DataError, UserError
from mllmsubj.ops.patchify import TOKEN_PIXELS
from mllmsubj.ops.pixels import from_uint8, to_uint8
from mllmsubj.typing import Float

# Warnings of damaged metadata and large files are irrelevant here; `catch_warnings` would not be thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")

_TURNED = range(2, 9)
"""EXIF orientations other than upright; files may contain other, invalid values."""


def open_image(path: str | Path) -> Image.Image:
    """Opens an image file and converts it with `to_rgb`; raises UserError if it is missing or not an image."""
    path = Path(path).expanduser()
    name = f"reference image {str(path)!r}"
    if not path.is_file():
        raise DataError(f"{name} is {'no file' if path.exists() else 'not there'}")
    with reading(name), Image.open(path) as image:
        return to_rgb(image)


@contextmanager
def reading(what: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Converts any exception of Pillow to an error of type `kind` with a one-line message about `what`."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise kind(f"{what} has too many pixels; scale it down first") from error
    except UnidentifiedImageError as error:
        raise kind(f"{what} is no picture, or in a format that Pillow does not read") from error
    except Exception as error:  # decoders raise many types: OSError, SyntaxError, RuntimeError, struct.error, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{what} cannot be read as a picture: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts the first frame to upright 8-bit RGB by its EXIF orientation, with transparency composited on white.

    An image that already has this form is returned unchanged.
    """
    image.seek(0)
    image.load()
    if is_turned(image):  # without this check, `exif_transpose` would copy upright images
        image = ImageOps.exif_transpose(image)
    image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def is_turned(image: Image.Image) -> bool:
    """Returns whether an image's EXIF orientation is other than upright."""
    return image.getexif().get(ExifTags.Base.Orientation) in _TURNED


def eight_bits(image: Image.Image) -> Image.Image:
    """Converts wider gray modes to 8 bits: 16-bit modes by their range, "I" and "F" by that of their values."""
    mode = image.mode
    if mode not in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        return image
    ranges = (65535.0,) if mode.startswith("I;16") else (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    values = np.nan_to_num(np.asarray(image)).astype(np.float64)
    top = next((top for top in ranges if values.max(initial=0) <= top), ranges[-1])
    return Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8))


def normalize_tiles(pixels: Any, config: ReferenceConfig) -> Any:
    """Normalizes 8-bit tiles [*shape, 3], NumPy or JAX arrays, to float32 for the MLLM."""
    mean, std = (np.asarray(each, np.float32) for each in (config.mean, config.std))
    return (pixels.astype(np.float32) / np.float32(255.0) - mean) / std


def mllm_tile(
    image: Image.Image, size: tuple[int, int], config: ReferenceConfig
) -> Float[np.ndarray, "height width 3"]:
    """Returns one normalized tile of `size` (height, width)."""
    return normalize_tiles(np.asarray(resize_to_tile(image, size)), config)


def resize_to_tile(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resizes an image to a tile of `size` (height, width), without regard to its aspect.

    Source: InternVL's `dynamic_preprocess` with one tile; bicubic.
    """
    return image.resize(size[::-1], Image.Resampling.BICUBIC)


def vae_image(image: Image.Image, several: bool, config: ReferenceConfig) -> Float[np.ndarray, "height width 3"]:
    """Returns a reference in [-1, 1] at the size for the VAE."""
    return from_uint8(np.asarray(resize_for_vae(image, several, config)))


def resize_for_vae(image: Image.Image, several: bool, config: ReferenceConfig) -> Image.Image:
    """Resizes a reference to the size for the VAE; returns it unchanged if it has that size."""
    size = fit_size(image.size, several, config)
    if image.size == size:
        return image  # Pillow would copy it
    return image.resize(size, Image.Resampling.LANCZOS)


def fit_size(size: tuple[int, int], several: bool, config: ReferenceConfig) -> tuple[int, int]:
    """Returns (width, height) for the VAE: the long side as configured, both sides multiples of 16."""
    scale = config.vae_side(several) / max(size)
    width, height = (max(TOKEN_PIXELS, round(side * scale / TOKEN_PIXELS) * TOKEN_PIXELS) for side in size)
    return width, height


def check_references(images: list[Image.Image], config: ReferenceConfig) -> None:
    """Raises UserError for no images, too many images, or an aspect ratio above `max_aspect`."""
    check_sizes([image.size for image in images], config)


def check_sizes(sizes: list[tuple[int, int]], config: ReferenceConfig) -> None:
    """Checks references as `check_references` does, given their (width, height)."""
    if not sizes:
        raise DataError("no reference image; give at least one with --reference=IMAGE")
    if len(sizes) > config.max_references:
        raise DataError(f"{len(sizes)} reference images; this model takes at most {config.max_references}")
    for i, (width, height) in enumerate(sizes, 1):
        if max(width, height) > config.max_aspect * min(width, height):
            raise DataError(
                f"reference image {i} is {width}x{height}; crop it so that its long side is at most "
                f"{config.max_aspect:g} times its short side"
            )


def to_pil(pixels: Float[np.ndarray, "height width 3"]) -> Image.Image:
    """Converts an image in [-1, 1] to 8 bits, clipped and rounded. Source: diffusers `VaeImageProcessor`."""
    return Image.fromarray(to_uint8(pixels))
