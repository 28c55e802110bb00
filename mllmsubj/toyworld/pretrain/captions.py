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
from mllmsubj.toyworld.dataset.latents import Moments
from mllmsubj.toyworld.pretrain.settings import DiTPartConfig
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, IDENTITY_ATTRIBUTES, numbers
from mllmsubj.toyworld.world.render import around
from mllmsubj.toyworld.world.scene import SCENE_ATTRIBUTES
from mllmsubj.typing import Float, Int, Leaf

UNSAID = -1
"""Placeholder for an attribute that a caption omits."""
FIRSTS = np.cumsum([0, *map(len, ATTRIBUTES.values())])
"""Table row of each attribute's first value; the last entry is the number of rows."""
PAIRED, APART = slice(None, None, 2), slice(1, None, 2)
"""Rows of a batch with a reference view, and rows without one."""


@flax.struct.dataclass
class Captioned(Rows):
    """Latents of pictures and their captions."""

    moments: Leaf
    """[b, 2, n, c] float16: mean and std of the patchified latents."""
    beside: Leaf
    """[b, 2, n, c] float16: the same for a reference view, another picture of the same subject."""
    weights: Leaf
    """[b, n] float32: loss weights of the tokens."""
    said: Leaf
    """[b, attributes] int32: table rows, or `UNSAID` for omitted attributes."""
    clip_ids: Leaf
    """[b, u] int32: CLIP tokens."""


def says(
    encoder: PromptEncoder, picture: Picture, kept: set[str]
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " u"]]:
    """Returns the table rows and the CLIP tokens of a caption of the attributes in `kept`."""
    said = np.where([name in kept for name in ATTRIBUTES], FIRSTS[:-1] + numbers(*vars(picture).values()), UNSAID)
    subject = None if "main" in kept else f"a {picture.identity.shape if 'shape' in kept else 'subject'}"
    text = caption(picture.identity, picture.scene, kept, subject) if kept else ""
    return said.astype(np.int32), np.asarray(encoder(text, 0).clip_ids[0])


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
    part: DiTPartConfig
    encoder: PromptEncoder
    grid: tuple[int, int]
    """Rows and columns of tokens."""
    channels: int
    """Channels of a token."""

    def augmentation(self) -> str:
        """Returns a description of the augmentation."""
        p = self.part
        return (
            f"leaves out {p.drop_all} of captions, {p.drop_subject} of subjects, {p.drop_beside} of those seen beside, "
            f"up to twice {p.drop_scene} of scenes' attributes"
        )

    def empty(self, bucket: Bucket, rows: int) -> Captioned:
        """Returns a batch of uninitialized rows."""
        tokens = self.grid[0] * self.grid[1]
        return Captioned(
            example=np.empty(rows, np.int32),
            skipped=np.empty(rows, np.int32),
            moments=np.empty((rows, 2, tokens, self.channels), np.float16),
            beside=np.empty((rows, 2, tokens, self.channels), np.float16),
            weights=np.empty((rows, tokens), np.float32),
            said=np.empty((rows, len(ATTRIBUTES)), np.int32),
            clip_ids=np.empty((rows, self.encoder.config.clip_tokens), np.int32),
        )

    def read(
        self,
        example: tuple[Picture, Moments, Moments],
        bucket: Bucket,
        rng: np.random.Generator,
        batch: Captioned,
        row: int,
    ) -> None:
        """Writes a picture with a random caption to `row`."""
        paired = row in range(len(batch.example))[PAIRED]
        self.write(example, self.kept(rng, paired), batch, row)

    def write(self, example: tuple[Picture, Moments, Moments], kept: set[str], batch: Captioned, row: int) -> None:
        """Writes a picture with a caption of the attributes in `kept` to `row`."""
        picture, batch.moments[row], batch.beside[row] = example
        batch.weights[row] = token_weights(picture, self.grid, self.part.subject_weight)
        batch.said[row], batch.clip_ids[row] = says(self.encoder, picture, kept)

    def kept(self, rng: np.random.Generator, paired: bool) -> set[str]:
        """Returns a caption's attributes, chosen at random; `paired`: whether the row has a reference view."""
        p = self.part
        left_out = rng.uniform(0.0, min(1.0, 2.0 * p.drop_scene))  # prompts mention few attributes of a scene
        kept = {name for name in SCENE_ATTRIBUTES if rng.random() >= left_out}
        if rng.random() >= (p.drop_beside if paired else p.drop_subject):
            kept |= set(IDENTITY_ATTRIBUTES)
        elif not paired or rng.random() < 0.5:
            kept |= {"shape"}
        return set() if rng.random() < p.drop_all else kept
