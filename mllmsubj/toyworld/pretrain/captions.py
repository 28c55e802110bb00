"""What the tiny transformer is told of a picture while it is pretrained: rows of a table, and CLIP's reading of a text.

The table has a row for each value of each attribute; it stands for T5 and is thrown away afterwards, as the method
throws away T5.
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
"""Stands for an attribute that a caption does not say."""
FIRSTS = np.cumsum([0, *map(len, ATTRIBUTES.values())])
"""Row of the table of each attribute's first value; the last entry is how many rows there are."""
PAIRED, APART = slice(None, None, 2), slice(1, None, 2)
"""Rows of a batch that have another view beside them, and those that have none."""


@flax.struct.dataclass
class Captioned(Rows):
    """Pictures and what is said of them."""

    moments: Leaf
    """[b, 2, n, c] float16: mean and deviation of the patchified latents."""
    beside: Leaf
    """[b, 2, n, c] float16: of another view of the same subject."""
    weights: Leaf
    """[b, n] float32: of the loss at the tokens."""
    said: Leaf
    """[b, attributes] int32: rows of the table, `UNSAID` where nothing is."""
    clip_ids: Leaf
    """[b, u] int32."""


def says(
    encoder: PromptEncoder, picture: Picture, kept: set[str]
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " u"]]:
    """Rows of the table, and CLIP's ids, of a caption that says the attributes in `kept`."""
    said = np.where([name in kept for name in ATTRIBUTES], FIRSTS[:-1] + numbers(*vars(picture).values()), UNSAID)
    subject = None if "main" in kept else f"a {picture.identity.shape if 'shape' in kept else 'subject'}"
    text = caption(picture.identity, picture.scene, kept, subject) if kept else ""
    return said.astype(np.int32), np.asarray(encoder(text, 0).clip_ids[0])


def token_weights(picture: Picture, grid: tuple[int, int], about: float) -> Float[np.ndarray, " n"]:
    """1 for each token of a grid of rows and columns, `about` for those that the square around the subject touches."""
    rows, columns = grid
    across, down, half = around(picture.scene.pose)
    y, x = np.mgrid[0.5 / rows : 1.0 : 1.0 / rows, 0.5 / columns : 1.0 : 1.0 / columns]
    touched = (np.abs(y - down) < half + 0.5 / rows) & (np.abs(x - across) < half + 0.5 / columns)
    return np.where(touched, about, 1.0).ravel().astype(np.float32)


@dataclass(frozen=True)
class CaptionReader:
    """Says some of what pictures show: all of it, the whole subject or its shape alone, or nothing."""

    config: DataConfig
    part: DiTPartConfig
    encoder: PromptEncoder
    grid: tuple[int, int]
    """Rows and columns of tokens."""
    channels: int
    """Of a token."""

    def augmentation(self) -> str:
        p = self.part
        return (
            f"leaves out {p.drop_all} of captions, {p.drop_subject} of subjects, {p.drop_beside} of those seen beside, "
            f"up to twice {p.drop_scene} of scenes' attributes"
        )

    def empty(self, bucket: Bucket, rows: int) -> Captioned:
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
        paired = row in range(len(batch.example))[PAIRED]
        self.write(example, self.kept(rng, paired), batch, row)

    def write(self, example: tuple[Picture, Moments, Moments], kept: set[str], batch: Captioned, row: int) -> None:
        """A row whose caption says the attributes in `kept`."""
        picture, batch.moments[row], batch.beside[row] = example
        batch.weights[row] = token_weights(picture, self.grid, self.part.subject_weight)
        batch.said[row], batch.clip_ids[row] = says(self.encoder, picture, kept)

    def kept(self, rng: np.random.Generator, paired: bool) -> set[str]:
        """Attributes that a caption says; `paired`: of a picture that has another view beside it."""
        p = self.part
        left_out = rng.uniform(0.0, min(1.0, 2.0 * p.drop_scene))  # a prompt says little of a scene, a caption much
        kept = {name for name in SCENE_ATTRIBUTES if rng.random() >= left_out}
        if rng.random() >= (p.drop_beside if paired else p.drop_subject):
            kept |= set(IDENTITY_ATTRIBUTES)
        elif not paired or rng.random() < 0.5:
            kept |= {"shape"}
        return set() if rng.random() < p.drop_all else kept
