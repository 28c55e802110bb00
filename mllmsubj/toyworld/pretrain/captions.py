"""Captions for the tiny transformer's pretraining: rows of an embedding table, and CLIP tokens of a text.

The table has a row for each value of each attribute. It takes the place of T5 and is discarded after pretraining, as
the method discards T5.
"""

from dataclasses import dataclass

import flax.struct
import numpy as np

from mllmsubj.config.data import DataConfig
from mllmsubj.data.batch import Rows
from mllmsubj.data.plan import Bucket
from mllmsubj.data.tokenization import PromptEncoder
from mllmsubj.toyworld import Picture, caption
from mllmsubj.toyworld.dataset.latents import LatentStats
from mllmsubj.toyworld.pretrain.settings import DiTPretrainConfig
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, IDENTITY_ATTRIBUTES, numbers
from mllmsubj.toyworld.world.render import around
from mllmsubj.toyworld.world.scene import SCENE_ATTRIBUTES
from mllmsubj.typing import Float, Int, Leaf

OMITTED = -1
"""Placeholder for an attribute that a caption omits."""
FIRSTS = np.cumsum([0, *map(len, ATTRIBUTES.values())])
"""Table row of each attribute's first value; the last entry is the number of rows."""
WITH_REFERENCE_VIEW, WITHOUT_REFERENCE_VIEW = slice(None, None, 2), slice(1, None, 2)
"""Rows of a batch with a reference view, and rows without one."""


@flax.struct.dataclass
class CaptionBatch(Rows):
    """Latents of pictures and their captions."""

    latent_stats: Leaf
    """[b, 2, n, c] float16: mean and std of the patchified latents."""
    reference_view: Leaf
    """[b, 2, n, c] float16: the same for a reference view, another picture of the same subject."""
    weights: Leaf
    """[b, n] float32: loss weights of the tokens."""
    captions: Leaf
    """[b, attributes] int32: table rows, or `OMITTED` for omitted attributes."""
    clip_ids: Leaf
    """[b, u] int32: CLIP tokens."""


def encode_caption(
    encoder: PromptEncoder, picture: Picture, kept: set[str]
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " u"]]:
    """Returns the table rows and the CLIP tokens of a caption of the attributes in `kept`."""
    captions = np.where([name in kept for name in ATTRIBUTES], FIRSTS[:-1] + numbers(*vars(picture).values()), OMITTED)
    subject = None if "main" in kept else f"a {picture.identity.shape if 'shape' in kept else 'subject'}"
    text = caption(picture.identity, picture.scene, kept, subject) if kept else ""
    return captions.astype(np.int32), np.asarray(encoder(text, 0).clip_ids[0])


def token_weights(picture: Picture, grid: tuple[int, int], about: float) -> Float[np.ndarray, " n"]:
    """Returns loss weights: `about` for tokens of the grid that overlap the square around the subject, else 1."""
    rows, columns = grid
    across, down, half = around(picture.scene.pose)
    y, x = np.mgrid[0.5 / rows : 1.0 : 1.0 / rows, 0.5 / columns : 1.0 : 1.0 / columns]
    touched = (np.abs(y - down) < half + 0.5 / rows) & (np.abs(x - across) < half + 0.5 / columns)
    return np.where(touched, about, 1.0).ravel().astype(np.float32)


@dataclass(frozen=True)
class CaptionReader:
    """Reads captions that randomly omit attributes of the scene, the subject except for its shape, or everything."""

    config: DataConfig
    component: DiTPretrainConfig
    encoder: PromptEncoder
    grid: tuple[int, int]
    """Rows and columns of tokens."""
    channels: int
    """Channels of a token."""

    def augmentation(self) -> str:
        """Returns a description of the augmentation."""
        p = self.component
        return (
            f"leaves out {p.drop_all} of captions, {p.drop_subject} of subjects, "
            f"{p.drop_subject_with_reference_view} of those with a reference view, "
            f"up to twice {p.drop_scene} of scenes' attributes"
        )

    def empty(self, bucket: Bucket, rows: int) -> CaptionBatch:
        """Returns a batch of uninitialized rows."""
        tokens = self.grid[0] * self.grid[1]
        return CaptionBatch(
            example=np.empty(rows, np.int32),
            skipped=np.empty(rows, np.int32),
            latent_stats=np.empty((rows, 2, tokens, self.channels), np.float16),
            reference_view=np.empty((rows, 2, tokens, self.channels), np.float16),
            weights=np.empty((rows, tokens), np.float32),
            captions=np.empty((rows, len(ATTRIBUTES)), np.int32),
            clip_ids=np.empty((rows, self.encoder.config.clip_tokens), np.int32),
        )

    def read(
        self,
        example: tuple[Picture, LatentStats, LatentStats],
        bucket: Bucket,
        rng: np.random.Generator,
        batch: CaptionBatch,
        row: int,
    ) -> None:
        """Writes a picture with a random caption to `row`."""
        with_reference_view = row in range(len(batch.example))[WITH_REFERENCE_VIEW]
        self.write(example, self.kept(rng, with_reference_view), batch, row)

    def write(
        self, example: tuple[Picture, LatentStats, LatentStats], kept: set[str], batch: CaptionBatch, row: int
    ) -> None:
        """Writes a picture with a caption of the attributes in `kept` to `row`."""
        picture, batch.latent_stats[row], batch.reference_view[row] = example
        batch.weights[row] = token_weights(picture, self.grid, self.component.subject_weight)
        batch.captions[row], batch.clip_ids[row] = encode_caption(self.encoder, picture, kept)

    def kept(self, rng: np.random.Generator, with_reference_view: bool) -> set[str]:
        """Returns the attributes of a caption, chosen at random."""
        p = self.component
        left_out = rng.uniform(0.0, min(1.0, 2.0 * p.drop_scene))  # prompts mention few attributes of a scene
        kept = {name for name in SCENE_ATTRIBUTES if rng.random() >= left_out}
        if rng.random() >= (p.drop_subject_with_reference_view if with_reference_view else p.drop_subject):
            kept |= set(IDENTITY_ATTRIBUTES)
        elif not with_reference_view or rng.random() < 0.5:
            kept |= {"shape"}
        return set() if rng.random() < p.drop_all else kept
