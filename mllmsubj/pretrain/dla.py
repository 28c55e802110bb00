"""The DLA before the method's two stages: it learns to tell the transformer what the captions' table tells it.

The table stands for T5. The DLA reads the same captions as texts, through the frozen MLLM, and is trained until the
transformer's velocity is the same (paper.md, "Where we can be better than the paper", 2). That target has no noise in
it, so this takes far fewer pictures than flow matching. The MLLM sees no picture here: what the DLA makes of
references is left to the two stages.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.data.plan import Bucket
from mllmsubj.data.prompts import PromptEncoder
from mllmsubj.data.settings import DataConfig
from mllmsubj.data.toyworld import Picture
from mllmsubj.data.toyworld.attributes import ATTRIBUTES
from mllmsubj.data.toyworld.latents import EncodedPictures, Moments
from mllmsubj.data.toyworld.pictures import PictureSource
from mllmsubj.data.toyworld.prompts import write_caption
from mllmsubj.diffusion.loss import squared_error
from mllmsubj.errors import UserError
from mllmsubj.evals.evaluator import Value
from mllmsubj.evals.toyworld.probe import ProbeReader
from mllmsubj.models.layers import init_params
from mllmsubj.models.subject import Condition
from mllmsubj.pretrain.captions import UNSAID, Captioned, CaptionReader
from mllmsubj.pretrain.dit import SHOWN, DiTPart
from mllmsubj.pretrain.settings import DLAPartConfig
from mllmsubj.train.metrics import Bins
from mllmsubj.typing import Array, Attends, Bool, Float, Int, Leaf, Params

TOLD = Attends(text=True)


@flax.struct.dataclass
class Told(Captioned):
    """Captions beside what the MLLM and CLIP read of them as texts."""

    input_ids: Leaf
    """[b, s] int32."""
    attention_mask: Leaf
    """[b, s] bool, False at padding."""
    text_clip_ids: Leaf
    """[b, u] int32; `clip_ids` are of the caption that the transformer knows."""


@dataclass(frozen=True)
class TextReader:
    """Says captions in other words."""

    captions: CaptionReader
    tokens: int
    """Of a text, filled up."""

    @property
    def config(self) -> DataConfig:
        return self.captions.config

    def augmentation(self) -> str:
        return f"{self.captions.augmentation()}, as texts of {self.tokens} tokens"

    def empty(self, bucket: Bucket, rows: int) -> Told:
        length = self.captions.encoder.layout(0, self.tokens)[0][1]
        captioned = self.captions.empty(bucket, rows)
        return Told(
            **vars(captioned),
            input_ids=np.empty((rows, length), np.int32),
            attention_mask=np.empty((rows, length), bool),
            text_clip_ids=np.empty_like(captioned.clip_ids),
        )

    def read(
        self,
        example: tuple[Picture, Moments, Moments],
        bucket: Bucket,
        rng: np.random.Generator,
        batch: Told,
        row: int,
    ) -> None:
        picture, kept = example[0], self.captions.kept(rng, paired=False)
        self.captions.write(example, kept, batch, row)
        text = write_caption(rng, picture.identity, picture.scene, kept, held_out=False)
        batch.input_ids[row], batch.attention_mask[row], batch.text_clip_ids[row] = _ids(
            self.captions.encoder, text, self.tokens
        )


def _ids(
    encoder: PromptEncoder, text: str, tokens: int
) -> tuple[Int[np.ndarray, " s"], Bool[np.ndarray, " s"], Int[np.ndarray, " u"]]:
    """The MLLM's, which of them are there, and CLIP's. Raises UserError for a text of more tokens."""
    try:
        ids = encoder(text, 0, tokens)
    except UserError:  # it names another key
        raise UserError(f"config key pretrain.dla.tokens is {tokens}, too few for {text!r}; raise it") from None
    return np.asarray(ids.input_ids[0]), np.asarray(ids.attention_mask[0]), np.asarray(ids.clip_ids[0])


@dataclass(frozen=True)
class DLAPart:
    """See `pretrain.part.Part`."""

    config: DLAPartConfig
    dit: DiTPart
    """That it talks to."""

    name = "dla"
    bins: ClassVar[Mapping[str, Bins]] = {}
    meanings: ClassVar[Mapping[str, str]] = {
        "dla/loss": "Squared difference of the velocity of a text from that of its caption",
        "dla/silence": "The same of saying nothing: what there is to learn",
        "dla/accuracy": "Share of what texts say that the probe reads in pictures drawn after them",
    }

    @property
    def size(self) -> int:
        return self.dit.size

    def init(self, key: jax.Array) -> Params:
        return {"dla": init_params(self.dit.model.stacked.dla, key)}

    def frozen(self) -> Params:
        """The MLLM and the transformer with all that it is pretrained with. Raises UserError where one is not there."""
        return self.dit.built_on(self.name, "mllm", "dit", "vae")

    def source(self, pictures: PictureSource, threads: int) -> EncodedPictures:
        return self.dit.source(pictures, threads)

    def reader(self, data: DataConfig) -> TextReader:
        return TextReader(self.dit.reader(data), self.config.tokens)

    def losses(
        self, params: Params, frozen: Params, batch: Told, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Squared difference of the velocities, at noisy latents of the picture."""
        latents, t, _ = self.dit.noisy(batch, key)
        known = self.dit.condition(frozen, batch)
        target = self.dit.velocity(frozen, latents, t, known, TOLD)
        velocity = self.dit.velocity(frozen, latents, t, self.condition(params, frozen, batch), TOLD)
        return squared_error(velocity, target, batch.weights), {}

    def condition(self, params: Params, frozen: Params, batch: Told) -> Condition:
        """What the texts say."""
        model, (start, stop) = self.dit.model, self.dit.encoder.layout(0, self.config.tokens)[0]
        states: Any = model.mllm.apply({"params": frozen["mllm"]}, batch.input_ids, batch.attention_mask, None)
        text: Any = model.dla.apply({"params": params["dla"]}, states[:, :, start:stop], method="aggregate_text")
        known = self.dit.condition(frozen, replace(batch, clip_ids=batch.text_clip_ids))
        return replace(known, text=text, text_mask=batch.attention_mask[:, start:stop])

    def judge(self, params: Params, frozen: Params) -> Iterator[tuple[str, Value]]:
        """On held-out pictures, of full captions in held-out sentence patterns."""
        held, rng = self.dit.held_out(frozen, self.config.judged, views=1), np.random.default_rng(0)
        texts = (write_caption(rng, p.identity, p.scene, set(ATTRIBUTES), held_out=True) for p in held.pictures)
        read, told = map(self._read, texts), []
        for batch, key in held.batches:
            ids, mask, clip_ids = (np.stack(each) for each in zip(*islice(read, len(batch.said)), strict=True))
            told.append((Told(**vars(batch), input_ids=ids, attention_mask=mask, text_clip_ids=clip_ids), key))
        look, silence = jax.jit(lambda *args: self.losses(*args)[0]), jax.jit(self._silence)
        yield "dla/loss", float(np.concatenate([look(params, frozen, *each) for each in told]).mean())
        yield "dla/silence", float(np.concatenate([silence(frozen, *each) for each in told]).mean())
        draw = jax.jit(lambda p, f, batch, key: self.dit.draw(f, f, self.condition(p, f, batch), key, TOLD))
        drawn = np.concatenate([draw(params, frozen, *each) for each in told])
        if (folder := self.dit.holding("probe")) is not None:
            yield "dla/accuracy", float((ProbeReader.load(folder)(drawn) == held.truth).mean())
        yield "dla/drawings", np.concatenate([held.pixels[:SHOWN], drawn[:SHOWN]], axis=2)
        yield "dla/drawings", held.texts[:SHOWN]

    def _read(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _ids(self.dit.encoder, text, self.config.tokens)

    def _silence(self, frozen: Params, batch: Captioned, key: Array) -> Float[Array, " b"]:
        latents, t, _ = self.dit.noisy(batch, key)
        known = self.dit.condition(frozen, batch)
        nothing = self.dit.condition(frozen, replace(batch, said=jnp.full_like(batch.said, UNSAID)))
        target, velocity = (self.dit.velocity(frozen, latents, t, each, TOLD) for each in (known, nothing))
        return squared_error(velocity, target)
