"""Distillation data of the tiny DLA: prompts about references, and captions in words without a reference.

Each row also contains the caption of the requested picture as rows of the transformer's embedding table.
"""

from dataclasses import dataclass

import flax.struct
import numpy as np

from mllmsubj.config.data import DataConfig
from mllmsubj.data.plan import Bucket
from mllmsubj.errors import UserError
from mllmsubj.toyworld import Example, Picture
from mllmsubj.toyworld.dataset.latents import LatentStats
from mllmsubj.toyworld.pretrain.captions import CaptionBatch, CaptionReader
from mllmsubj.toyworld.prompts.prompt import random_caption
from mllmsubj.toyworld.world.attributes import IDENTITY_ATTRIBUTES
from mllmsubj.toyworld.world.scene import POSE_ATTRIBUTES
from mllmsubj.typing import Int, Leaf

TEXT_ONLY_PERIOD = 4
"""One row in this many is a text without a reference, starting with the first."""


def split_rows(rows: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " p"]]:
    """Returns the numbers of a batch's rows that are texts without a reference, and of those that are prompts."""
    numbers = np.arange(rows)
    return numbers[::TEXT_ONLY_PERIOD], numbers[numbers % TEXT_ONLY_PERIOD > 0]


@flax.struct.dataclass
class DistillationBatch(CaptionBatch):
    """Captions, with the MLLM and CLIP inputs that replace them."""

    input_ids: Leaf
    """[b, s] int32; `s` is the length of the longer kind of row, and shorter rows are padded."""
    attention_mask: Leaf
    """[b, s] bool, False at padding."""
    text_clip_ids: Leaf
    """[b, u] int32: CLIP tokens of the text; `clip_ids` are those of the caption."""
    tiles: Leaf
    """[b, tile, tile, 3] uint8: references for the MLLM; undefined in rows without a reference."""


@dataclass(frozen=True)
class DistillationReader:
    """Reads rows of both kinds."""

    captions: CaptionReader
    tokens: int
    """Length of a text without a reference, padding included; prompts have data.prompt_tokens."""
    tile: int
    """Side of the MLLM's input picture in pixels."""

    @property
    def config(self) -> DataConfig:
        """Data settings."""
        return self.captions.config

    def augmentation(self) -> str:
        """Returns a description of the augmentation."""
        return (
            f"{self.captions.augmentation()}, one of {TEXT_ONLY_PERIOD} as texts of {self.tokens} tokens, "
            f"the others prompts of {self.config.prompt_tokens}"
        )

    def layout(self, references: int) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
        """See `PromptEncoder.layout`."""
        return self.captions.encoder.layout(references, self.config.prompt_tokens if references else self.tokens)

    def empty(self, bucket: Bucket, rows: int) -> DistillationBatch:
        """Returns a batch of rows to be written."""
        captioned = self.captions.empty(bucket, rows)
        length = max(self.layout(references)[0][1] for references in (0, 1))
        return DistillationBatch(
            **vars(captioned),
            input_ids=np.zeros((rows, length), np.int32),
            attention_mask=np.zeros((rows, length), bool),
            text_clip_ids=np.empty_like(captioned.clip_ids),
            tiles=np.empty((rows, self.tile, self.tile, 3), np.uint8),
        )

    def read(
        self,
        example: tuple[Example, LatentStats],
        bucket: Bucket,
        rng: np.random.Generator,
        batch: DistillationBatch,
        row: int,
    ) -> None:
        """Writes the example to `row`, as the kind of that row."""
        pair, latent_stats = example
        if row % TEXT_ONLY_PERIOD:
            self.write_prompt_row(pair, latent_stats, batch, row)
        else:
            kept = self.captions.kept(rng, with_reference_view=False)
            text = random_caption(rng, pair.target.identity, pair.target.scene, kept, held_out=False)
            self.write_text_row(pair.target, kept, text, latent_stats, batch, row)

    def write_prompt_row(self, example: Example, latent_stats: LatentStats, batch: DistillationBatch, row: int) -> None:
        """Writes a row with a prompt about a reference.

        Its caption describes the whole subject, its pose, and what the prompt asks of the scene.
        """
        kept = {*IDENTITY_ATTRIBUTES, *POSE_ATTRIBUTES, *(name for name, _ in example.prompt.asks)}
        self._write(example.target, kept, example.prompt.text, 1, latent_stats, batch, row)
        batch.tiles[row] = example.reference.render(self.tile)

    def write_text_row(
        self, picture: Picture, kept: set[str], text: str, latent_stats: LatentStats, batch: DistillationBatch, row: int
    ) -> None:
        """Writes a row with a text without a reference that describes the attributes in `kept`.

        Raises UserError if the text is too long.
        """
        try:
            self._write(picture, kept, text, 0, latent_stats, batch, row)
        except UserError as error:  # its message names another config key
            message = f"config key pretrain.dla.tokens is {self.tokens}, too few for {text!r}; raise it"
            raise UserError(message) from error

    def _write(
        self,
        picture: Picture,
        kept: set[str],
        text: str,
        references: int,
        latent_stats: LatentStats,
        batch: DistillationBatch,
        row: int,
    ) -> None:
        self.captions.write((picture, latent_stats, latent_stats), kept, batch, row)
        (start, stop), _ = self.layout(references)
        ids = self.captions.encoder(text, references, stop - start)
        batch.input_ids[row, :stop], batch.attention_mask[row, :stop] = ids.input_ids[0], ids.attention_mask[0]
        batch.attention_mask[row, stop:], batch.text_clip_ids[row] = False, ids.clip_ids[0]
