"""Conversion of an example to a row of a batch, with the same preprocessing as in inference (`images.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mllmsubj.config.data import DataConfig, ReferenceConfig
from mllmsubj.data.batch import Batch
from mllmsubj.data.example import Example, Unreadable
from mllmsubj.data.images import check_sizes, fit_size, resize_for_vae
from mllmsubj.data.pixels import decode_mask, decode_rgb
from mllmsubj.data.plan import Bucket
from mllmsubj.data.tokenization import PromptEncoder
from mllmsubj.errors import DataError, UserError
from mllmsubj.ops.patchify import TOKEN_PIXELS


@dataclass(frozen=True)
class RowReader:
    """Thread-safe conversion of examples to rows of batches."""

    config: DataConfig
    reference: ReferenceConfig
    encoder: PromptEncoder
    tile: int
    """Side of the MLLM's tile in pixels."""

    def __post_init__(self) -> None:
        """Raises UserError if the settings allow more references than the model."""
        if self.config.max_references > self.reference.max_references:
            raise DataError(
                f"config key data.max_references is {self.config.max_references}, above reference.max_references, "
                f"{self.reference.max_references}; lower it, or raise that"
            )

    def augmentation(self) -> str:
        """Returns a description of everything that a row depends on, besides its example and the plan."""
        data = self.config
        return (
            f"swap {data.swap:g}, flip {data.flip:g}, crop {data.crop:g}, "
            f"remove_background {data.remove_background:g}, prompt_tokens {data.prompt_tokens}"
        )

    def empty(self, bucket: Bucket, rows: int) -> Batch:
        """Returns a batch of `rows` rows with uninitialized arrays."""
        r, tile, side = bucket.references, self.tile, self.reference.square_side(bucket.references > 1)
        text, images = self.encoder.layout(r, self.config.prompt_tokens)
        return Batch(
            input_ids=np.empty((rows, text[1]), np.int32),
            attention_mask=np.empty((rows, text[1]), bool),
            clip_ids=np.empty((rows, self.encoder.config.clip_tokens), np.int32),
            tiles=np.empty((rows, r, tile, tile, 3), np.uint8),
            references=np.empty((rows, r, side, side, 3), np.uint8),
            reference_mask=np.empty((rows, r * (side // TOKEN_PIXELS) ** 2), bool),
            target=np.empty((rows, bucket.height, bucket.width, 3), np.uint8),
            example=np.empty(rows, np.int32),
            skipped=np.empty(rows, np.int32),
            text=text,
            images=images,
        )

    def read(self, example: Example, bucket: Bucket, rng: np.random.Generator, batch: Batch, row: int) -> None:
        """Fills all fields of a row but `example` and `skipped`.

        Raises Unreadable if the example cannot be used; the row may then be partly filled.
        """
        self._write_prompt(example, bucket, batch, row)
        references, target = self._pictures(example, bucket, rng)
        fitted = []
        for i, reference in enumerate(references):
            batch.tiles[row, i] = _resized(reference, (self.tile, self.tile), Image.Resampling.BICUBIC)
            width, height = fit_size(_size(reference), len(references) > 1, self.reference)
            fitted.append(_resized(reference, (height, width), Image.Resampling.LANCZOS))
        _place_each(fitted, batch.references[row], batch.reference_mask[row])
        batch.target[row] = center_crop_resize(target, (bucket.height, bucket.width))

    def _write_prompt(self, example: Example, bucket: Bucket, batch: Batch, row: int) -> None:
        try:
            tokens = self.encoder(example.prompt, bucket.references, self.config.prompt_tokens)
        except UserError as error:
            raise Unreadable(f"{example.origin}: {error}") from error
        assert (tokens.text, tokens.images) == (batch.text, batch.images), "rows of a bucket share one layout"
        batch.input_ids[row], batch.attention_mask[row] = tokens.input_ids[0], tokens.attention_mask[0]
        batch.clip_ids[row] = tokens.clip_ids[0]

    def _pictures(
        self, example: Example, bucket: Bucket, rng: np.random.Generator
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns the augmented references and the target, uint8 [height, width, 3].

        The random numbers that are generated do not depend on each other's outcomes.
        """
        count, origin = bucket.references, example.origin
        if len(example.references) < count:
            raise Unreadable(f"{origin} has {len(example.references)} references; its index says {count} or more")
        masks = example.masks or (None,) * len(example.references)
        sources = list(zip(example.references[:count], masks, strict=False))
        target, names = example.target, [f"{origin}, reference {i}" for i in range(1, count + 1)]
        named = f"{origin}, target"
        if rng.random() < self.config.swap and len(example.references) == 1:
            sources, target = [(target, None)], sources[0][0]
            names, named = [named], names[0]

        references = []
        for (pixels, mask), name in zip(sources, names, strict=True):
            picture, chance = decode_rgb(pixels, name), rng.random()
            if mask is not None and chance < self.config.remove_background:
                picture = remove_background(picture, decode_mask(mask, f"{name}'s mask"), name)
            picture = crop(picture, self.config.crop, rng)
            if rng.random() < self.config.flip:
                picture = picture[:, ::-1]
            references.append(picture)
        try:
            check_sizes([_size(each) for each in references], self.reference)
        except UserError as error:
            raise Unreadable(f"{origin}: {error}") from error
        return references, decode_rgb(target, named)


def remove_background(picture: np.ndarray, mask: Image.Image, name: str) -> np.ndarray:
    """Composites the masked subject of an image on white; intermediate values of the mask blend."""
    width, height = size = _size(picture)
    if mask.size != size:
        raise Unreadable(f"{name} is {width}x{height} and its mask {mask.width}x{mask.height}; make them equal")
    return np.asarray(Image.composite(Image.fromarray(picture), Image.new("RGB", size, (255, 255, 255)), mask))


def crop(picture: np.ndarray, smallest: float, rng: np.random.Generator) -> np.ndarray:
    """Crops an image at random, with the same aspect and at least the fraction `smallest` of its area."""
    share, across, down = rng.random(3)
    scale, whole = np.sqrt(smallest + (1 - smallest) * share), _size(picture)
    width, height = (max(1, round(side * scale)) for side in whole)
    left, top = round(across * (whole[0] - width)), round(down * (whole[1] - height))
    return picture[top : top + height, left : left + width]


def center_crop_resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes the largest centered crop with the aspect of `size` (height, width) to that size."""
    (height, width), whole = size, _size(picture)
    scale = min(whole[0] / width, whole[1] / height)
    across, down = (whole[0] - width * scale) / 2, (whole[1] - height * scale) / 2
    box = (across, down, across + width * scale, down + height * scale)
    if box == (0, 0, *whole):
        return _resized(picture, size, Image.Resampling.LANCZOS)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS, box=box))


def pad_all(pictures: Sequence[Image.Image], config: ReferenceConfig, squares: np.ndarray, mask: np.ndarray) -> None:
    """Resizes one row's references for the VAE and pads them to `squares` [r, side, side, 3]; `mask` is [r · n]."""
    _place_each([np.asarray(resize_for_vae(picture, len(pictures) > 1, config)) for picture in pictures], squares, mask)


def _place_each(pictures: Sequence[np.ndarray], squares: np.ndarray, mask: np.ndarray) -> None:
    side = squares.shape[1] // TOKEN_PIXELS
    for picture, square, tokens in zip(pictures, squares, mask.reshape(-1, side, side), strict=True):
        pad_to_square(picture, square, tokens)


def pad_to_square(pixels: np.ndarray, square: np.ndarray, mask: np.ndarray) -> None:
    """Writes an image to the top left corner of a square and repeats its last row and column to the borders.

    `mask` [rows, columns] of the square's tokens is set to True for those of the image, else to False.
    """
    height, width = pixels.shape[:2]
    square[:height, :width] = pixels
    square[:height, width:] = pixels[:, -1:]
    square[height:] = square[height - 1]
    mask[...] = False
    mask[: height // TOKEN_PIXELS, : width // TOKEN_PIXELS] = True


def _resized(picture: np.ndarray, size: tuple[int, int], filter: Image.Resampling) -> np.ndarray:
    """Resizes an image to `size` (height, width), unless it has that size."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize(size[::-1], filter))


def _size(picture: np.ndarray) -> tuple[int, int]:
    """Returns (width, height), the order that Pillow uses."""
    return picture.shape[1], picture.shape[0]
