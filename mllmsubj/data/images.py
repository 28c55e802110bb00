"""Any picture that Pillow reads -> upright 8-bit RGB -> the arrays that the MLLM and the VAE want."""

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

# Of damaged metadata and large files: the pixels are what counts. For good, since `catch_warnings` is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

_TURNED = range(2, 9)
"""EXIF orientations that are not upright; files hold others too, which mean nothing."""


def open_image(path: str | Path) -> Image.Image:
    """The picture in a file, as `to_rgb` gives it. Raises UserError if it is missing or no picture."""
    path = Path(path).expanduser()
    name = f"reference image {str(path)!r}"
    if not path.is_file():
        raise DataError(f"{name} is {'no file' if path.exists() else 'not there'}")
    with reading(name), Image.open(path) as image:
        return to_rgb(image)


@contextmanager
def reading(what: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Whatever Pillow raises of the picture called `what` becomes one line, an error of that kind."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise kind(f"{what} has too many pixels; scale it down first") from error
    except UnidentifiedImageError as error:
        raise kind(f"{what} is no picture, or in a format that Pillow does not read") from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, RuntimeError, struct.error, …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{what} cannot be read as a picture: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """First frame, turned upright by its EXIF orientation, 8-bit RGB; transparency lies on white.

    A picture that is all this already is returned as it is.
    """
    image.seek(0)
    image.load()
    if is_turned(image):  # else `exif_transpose` copies
        image = ImageOps.exif_transpose(image)
    image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def is_turned(image: Image.Image) -> bool:
    """Whether its EXIF orientation is not upright."""
    return image.getexif().get(ExifTags.Base.Orientation) in _TURNED


def eight_bits(image: Image.Image) -> Image.Image:
    """Wider grey to 8 bits: 16-bit modes by their range; "I" and "F" name none, so by the values' own."""
    mode = image.mode
    if mode not in ("I", "I;16", "I;16B", "I;16L", "I;16N", "F"):
        return image
    ranges = (65535.0,) if mode.startswith("I;16") else (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    values = np.nan_to_num(np.asarray(image)).astype(np.float64)
    top = next((top for top in ranges if values.max(initial=0) <= top), ranges[-1])
    return Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8))


def normalised(pixels: Any, config: ReferenceConfig) -> Any:
    """8-bit tiles, [*shape, 3], as the MLLM wants them, float32; arrays of NumPy or of JAX."""
    mean, std = (np.asarray(each, np.float32) for each in (config.mean, config.std))
    return (pixels.astype(np.float32) / np.float32(255.0) - mean) / std


def mllm_tile(
    image: Image.Image, size: tuple[int, int], config: ReferenceConfig
) -> Float[np.ndarray, "height width 3"]:
    """One tile of `size` (height, width), normalised."""
    return normalised(np.asarray(squeeze(image, size)), config)


def squeeze(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """To fit a tile of `size` (height, width), as InternVL does with a single tile.

    Source: InternVL's `dynamic_preprocess` with one tile; bicubic.
    """
    return image.resize(size[::-1], Image.Resampling.BICUBIC)


def vae_picture(image: Image.Image, several: bool, config: ReferenceConfig) -> Float[np.ndarray, "height width 3"]:
    """The reference in [-1, 1] at the VAE branch's size."""
    return from_uint8(np.asarray(fit(image, several, config)))


def fit(image: Image.Image, several: bool, config: ReferenceConfig) -> Image.Image:
    """At the VAE branch's size."""
    size = fit_size(image.size, several, config)
    if image.size == size:
        return image  # Pillow would copy it
    return image.resize(size, Image.Resampling.LANCZOS)


def fit_size(size: tuple[int, int], several: bool, config: ReferenceConfig) -> tuple[int, int]:
    """(width, height) for the VAE branch: long side as configured, sides multiples of 16."""
    scale = config.vae_side(several) / max(size)
    width, height = (max(TOKEN_PIXELS, round(side * scale / TOKEN_PIXELS) * TOKEN_PIXELS) for side in size)
    return width, height


def check_references(images: list[Image.Image], config: ReferenceConfig) -> None:
    """Raises UserError for none, too many, or one too long and thin."""
    check_sizes([image.size for image in images], config)


def check_sizes(sizes: list[tuple[int, int]], config: ReferenceConfig) -> None:
    """`check_references` by their (width, height)."""
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
    """A picture from [-1, 1], clipped and rounded. Source: diffusers `VaeImageProcessor`."""
    return Image.fromarray(to_uint8(pixels))
