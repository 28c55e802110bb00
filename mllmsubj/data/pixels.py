"""Thread-safe decoding of an example's images; all functions raise Unreadable, with the reason, if they cannot."""

import io
import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from mllmsubj.data.example import Pixels, Unreadable
from mllmsubj.data.images import eight_bits, reading, to_rgb

_TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def decode(pixels: Pixels, what: str) -> Image.Image:
    """Decodes an image with `to_rgb`; `what` names it in errors, such as "pairs.jsonl:12, target"."""
    if isinstance(pixels, np.ndarray):
        _check(pixels, what, channels=True)
        return Image.fromarray(pixels)
    with reading(what, Unreadable), Image.open(io.BytesIO(pixels)) as image:
        return to_rgb(image)


def decode_rgb(pixels: Pixels, what: str) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image as `decode` does, to an array, which may be `pixels` itself."""
    if isinstance(pixels, np.ndarray):
        _check(pixels, what, channels=True)
        return pixels
    with reading(what, Unreadable), Image.open(io.BytesIO(pixels)) as image:
        return np.asarray(to_rgb(image))


def decode_mask(pixels: Pixels, what: str) -> Image.Image:
    """Decodes a mask to upright 8-bit gray (mode "L"): 255 on the subject, 0 where it is transparent."""
    if isinstance(pixels, np.ndarray):
        _check(pixels, what, channels=False)
        return Image.fromarray(pixels)
    with reading(what, Unreadable), Image.open(io.BytesIO(pixels)) as image:
        image.seek(0)
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
            upright = Image.alpha_composite(black, upright)
        return eight_bits(upright).convert("L")


def size_of(pixels: Pixels | os.PathLike[str], what: str) -> tuple[int, int]:
    """Returns (width, height) of an image or image file after EXIF rotation, from its header alone.

    An orientation that a PNG stores after its pixels is ignored, since finding it requires reading the whole file.
    """
    if isinstance(pixels, np.ndarray):
        _check(pixels, what, channels=pixels.ndim == 3)
        return pixels.shape[1], pixels.shape[0]
    with reading(what, Unreadable), _opened(pixels) as file, Image.open(file) as image:
        known = image.format != "PNG" or "exif" in image.info  # otherwise Pillow decodes a PNG to find later metadata
        orientation = image.getexif().get(ExifTags.Base.Orientation) if known else None
        width, height = image.size
    return (height, width) if orientation in _TRANSPOSED else (width, height)


def _opened(pixels: bytes | os.PathLike[str]) -> Any:
    return io.BytesIO(pixels) if isinstance(pixels, bytes) else epath.Path(pixels).open("rb")


def _check(pixels: np.ndarray, what: str, *, channels: bool) -> None:
    wanted = "[height, width, 3]" if channels else "[height, width]"
    shaped = pixels.ndim == 3 and pixels.shape[2] == 3 if channels else pixels.ndim == 2
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise Unreadable(f"{what} is an array {list(pixels.shape)} of {pixels.dtype}; it should be uint8 {wanted}")
