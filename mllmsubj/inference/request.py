"""Conversion of a request to the arrays that the model reads; all errors in a request are found here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mllmsubj.config.data import ReferenceConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.data.images import check_references, mllm_tile, open_image, to_rgb, vae_image
from mllmsubj.data.tokenization import PromptEncoder
from mllmsubj.data.transforms import pad_all
from mllmsubj.errors import UserError
from mllmsubj.models.subject import Layout, SubjectInputs
from mllmsubj.ops.patchify import TOKEN_PIXELS
from mllmsubj.ops.pixels import from_uint8

Reference = Image.Image | str | Path


class RequestReader:
    """Reads requests for one checkpoint; needs its config and tokenizers, not its parameters."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        """Loads the tokenizers of the checkpoint `folder`."""
        mllm = experiment.model.mllm
        self._size, self._config = (mllm.vision.image_size,) * 2, experiment.reference
        self._encoder = PromptEncoder(
            folder / "tokenizer",
            folder / "clip_tokenizer",
            experiment.prompt,
            image_tokens=mllm.tokens_per_tile,
            image_token_id=mllm.image_token_id,
        )

    def __call__(self, references: Sequence[Reference], prompt: str, num_images: int, seed: int) -> SubjectInputs:
        """Returns the arrays of one request, batch 1; raises UserError for an invalid request."""
        _check(prompt, num_images, seed)
        images = [open_image(r) if isinstance(r, str | Path) else to_rgb(r) for r in references]
        check_references(images, self._config)
        tokens, null = self._encoder(prompt, len(images)), self._encoder("", 0)
        vae, mask = _vae_images(images, self._config)
        return SubjectInputs(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            null_ids=null.input_ids,
            clip_ids=tokens.clip_ids,
            pixel_values=np.stack([mllm_tile(image, self._size, self._config) for image in images]),
            references=tuple(image[None] for image in vae),
            layout=Layout(tokens.text, tokens.images),
            null_text=null.text,
            reference_mask=mask,
        )


def _vae_images(images: list[Image.Image], config: ReferenceConfig) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Returns the VAE's inputs, in [-1, 1], and the mask of their tokens.

    Several references are padded to squares as in training, since the position ids of each depend on the sizes of the
    previous ones.
    """
    if len(images) == 1:
        return [vae_image(images[0], False, config)], None
    side = config.square_side(True)
    squares = np.empty((len(images), side, side, 3), np.uint8)
    mask = np.empty((1, len(images) * (side // TOKEN_PIXELS) ** 2), bool)
    pad_all(images, config, squares, mask[0])
    return list(from_uint8(squares)), mask


def _check(prompt: str, num_images: int, seed: int) -> None:
    if not prompt.strip():
        raise UserError('no prompt; give one with --prompt="…"')
    if any(
        "\ud800" <= letter <= "\udfff" for letter in prompt
    ):  # surrogates stand for bytes that Python could not decode
        raise UserError(f"the prompt is not valid UTF-8: {prompt!r}")
    if num_images < 1:
        raise UserError(f"num_images is {num_images}; it must be at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be from 0 to {2**32 - 1}")
