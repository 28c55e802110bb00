"""What was asked for -> the arrays the model reads; everything that can be wrong with a request is found here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mllmsubj.data.images import check_references, mllm_tile, open_image, to_rgb, vae_picture
from mllmsubj.data.prompts import PromptEncoder
from mllmsubj.errors import UserError
from mllmsubj.experiment import Experiment
from mllmsubj.models.subject import Layout, SubjectInputs

Reference = Image.Image | str | Path


class RequestReader:
    """Reads requests for one checkpoint; needs its config and tokenizers, not its parameters."""

    def __init__(self, experiment: Experiment, folder: Path):
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
        """The arrays of one request, batch 1; raises UserError for anything in it that cannot be."""
        _check(prompt, num_images, seed)
        pictures = [open_image(r) if isinstance(r, str | Path) else to_rgb(r) for r in references]
        check_references(pictures, self._config)
        tokens, null = self._encoder(prompt, len(pictures)), self._encoder("", 0)
        return SubjectInputs(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            null_ids=null.input_ids,
            clip_ids=tokens.clip_ids,
            pixel_values=np.stack([mllm_tile(picture, self._size, self._config) for picture in pictures]),
            references=tuple(vae_picture(picture, len(pictures) > 1, self._config)[None] for picture in pictures),
            layout=Layout(tokens.text, tokens.images),
            null_text=null.text,
        )


def _check(prompt: str, num_images: int, seed: int) -> None:
    if not prompt.strip():
        raise UserError('no prompt; say what to draw with --prompt="…"')
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # how Python keeps bytes that it could not decode
        raise UserError(f"the prompt is not valid UTF-8: {prompt!r}")
    if num_images < 1:
        raise UserError(f"num_images is {num_images}; it must be at least 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must be from 0 to {2**32 - 1}")
