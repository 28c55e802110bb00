"""The tiny transformer before it knows of subjects: text to image, as FLUX comes before the method adapts it.

Its context is a table of embeddings, one for each attribute that a caption says, which stands for T5 and is thrown away
afterwards, as the method throws away T5; the CLIP tower reads the caption and is trained along.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from mllmsubj import checkpoint, shipped
from mllmsubj.data.batch import Rows
from mllmsubj.data.plan import Bucket
from mllmsubj.data.prompts import PromptEncoder
from mllmsubj.data.settings import DataConfig
from mllmsubj.data.toyworld import Picture, Split, caption
from mllmsubj.data.toyworld.attributes import ATTRIBUTES, IDENTITY_ATTRIBUTES, numbers
from mllmsubj.data.toyworld.latents import EncodedPictures, Moments, encoded
from mllmsubj.data.toyworld.pictures import PictureSource
from mllmsubj.data.toyworld.scene import SCENE_ATTRIBUTES
from mllmsubj.diffusion.loss import interpolate, logit_normal, squared_error
from mllmsubj.diffusion.sampler import sample
from mllmsubj.diffusion.schedule import ShiftConfig, time_grid
from mllmsubj.diffusion.stages import Stage
from mllmsubj.errors import UserError
from mllmsubj.evals.evaluator import Value
from mllmsubj.evals.toyworld.probe import ProbeReader
from mllmsubj.models.layers import init_params, unstack
from mllmsubj.models.subject import SubjectModel, token_grid
from mllmsubj.ops.patchify import image_ids
from mllmsubj.pretrain.settings import DiTPartConfig
from mllmsubj.sharding import unflatten
from mllmsubj.train.metrics import Bins
from mllmsubj.train.settings import TimeConfig
from mllmsubj.train.step import BINS, TIME_BINS
from mllmsubj.typing import Array, Attends, Float, Int, Leaf, Params

UNSAID = -1
"""Stands for an attribute that a caption does not say."""
FIRSTS = np.cumsum([0, *map(len, ATTRIBUTES.values())])
"""Row of the table of each attribute's first value; the last entry is how many rows there are."""
SHOWN = 8


@flax.struct.dataclass
class Captioned(Rows):
    """Pictures and what is said of them."""

    moments: Leaf
    """[b, 2, n, c] float16: mean and deviation of the patchified latents."""
    said: Leaf
    """[b, attributes] int32: rows of the table, `UNSAID` where nothing is."""
    clip_ids: Leaf
    """[b, u] int32."""


@dataclass(frozen=True)
class CaptionReader:
    """Says some of what pictures show: all of it, the whole subject or its shape alone, or nothing."""

    config: DataConfig
    part: "DiTPart"

    def augmentation(self) -> str:
        p = self.part.config
        return (
            f"leaves out {p.drop_all} of captions, {p.drop_subject} of subjects, {p.drop_scene} of scenes' attributes"
        )

    def empty(self, bucket: Bucket, rows: int) -> Captioned:
        return Captioned(
            example=np.empty(rows, np.int32),
            skipped=np.empty(rows, np.int32),
            moments=np.empty((rows, *self.part.moments_shape), np.float16),
            said=np.empty((rows, len(ATTRIBUTES)), np.int32),
            clip_ids=np.empty((rows, self.part.encoder.config.clip_tokens), np.int32),
        )

    def read(
        self,
        example: tuple[Picture, Moments],
        bucket: Bucket,
        rng: np.random.Generator,
        batch: Captioned,
        row: int,
    ) -> None:
        picture, batch.moments[row] = example
        p = self.part.config
        kept = {name for name in SCENE_ATTRIBUTES if rng.random() >= p.drop_scene}
        kept |= {"shape"} if rng.random() < p.drop_subject else set(IDENTITY_ATTRIBUTES)
        kept = set() if rng.random() < p.drop_all else kept
        batch.said[row], batch.clip_ids[row] = self.part.says(picture, kept)


@dataclass(frozen=True)
class DiTPart:
    """See `pretrain.part.Part`."""

    model: SubjectModel
    config: DiTPartConfig
    size: int
    encoder: PromptEncoder
    time: TimeConfig
    shift: ShiftConfig
    folder: Path
    """Of the parts that it builds on."""

    name = "dit"
    bins: ClassVar[Mapping[str, Bins]] = {"by_time": BINS["by_time"]}
    meanings: ClassVar[Mapping[str, str]] = {
        "dit/loss": "Squared error of the velocity on held-out pictures, smaller is better",
        "dit/accuracy": "Share of what captions say that the probe reads in pictures drawn after them",
        "dit/truth": "The same in the renderer's own pictures: the most that the probe can see",
    }

    def init(self, key: Array) -> Params:
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        width = self.model.config.transformer.joint_attention_dim
        return {
            "transformer": init_params(self._bare.stacked.transformer, keys[0]),
            "clip": init_params(self._bare.stacked.clip, keys[1]),
            "captions": {"token_embedding": {"embedding": jax.random.normal(keys[2], (int(FIRSTS[-1]), width))}},
        }

    def frozen(self) -> Params:
        """The VAE. Raises UserError where it is not there yet."""
        folder = self._holding("vae")
        if folder is None:
            raise UserError(f"part dit builds on part vae, which is not in {self.folder}; make that first: --part=vae")
        read = shipped.read(folder, ("vae",))
        params = unflatten({path: jnp.asarray(leaf) for path, leaf in read.items()})
        return params if self.model.compute.scan_layers else unstack(params)

    def source(self, pictures: PictureSource, threads: int) -> EncodedPictures:
        some = PictureSource(pictures.split, self.config.pictures, pictures.size, pictures.seed)
        frozen, look = self.frozen(), jax.jit(self._moments)
        folder = self._holding("vae")
        assert folder is not None
        vae = hashlib.sha256(shipped.path(folder, "vae").read_bytes()).hexdigest()
        encoder = f"{vae} {self.model.config.vae} {self.model.compute.dtype}"

        def encode(pixels: UInt8[np.ndarray, "b height width 3"]) -> Float[np.ndarray, "b two n c"]:
            return jax.device_get(look(frozen, pixels))

        return encoded(some, encode, encoder, self.folder / self.name, threads)

    def reader(self, data: DataConfig) -> CaptionReader:
        return CaptionReader(data, self)

    def says(self, picture: Picture, kept: set[str]) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " u"]]:
        """Rows of the table, and CLIP's ids, of a caption that says the attributes in `kept`."""
        said = np.where([name in kept for name in ATTRIBUTES], FIRSTS[:-1] + numbers(*vars(picture).values()), UNSAID)
        subject = None if "main" in kept else f"a {picture.identity.shape}"
        text = caption(picture.identity, picture.scene, kept, subject) if kept else ""
        return said.astype(np.int32), np.asarray(self.encoder(text, 0).clip_ids[0])

    def losses(
        self, params: Params, frozen: Params, batch: Captioned, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Flow matching on the VAE's latents, as the method trains."""
        keys = jax.random.split(key, 3)
        mean, std = jnp.moveaxis(batch.moments.astype(jnp.float32), 1, 0)
        picture = mean + std * jax.random.normal(keys[0], mean.shape)
        t = jax.vmap(lambda key: logit_normal(key, self.time.mean, self.time.std))(
            jax.random.split(keys[1], len(picture))
        )
        latents, target = interpolate(picture, jax.random.normal(keys[2], picture.shape), t)
        condition = self._condition(params, batch.said, batch.clip_ids)
        losses = squared_error(self._velocity(params, latents, t, condition), target)
        rows = jax.nn.one_hot(jnp.minimum((t * TIME_BINS).astype(jnp.int32), TIME_BINS - 1), TIME_BINS)
        return losses, {"by_time": jnp.stack([losses @ rows, rows.sum(axis=0)])}

    def judge(self, params: Params, frozen: Params) -> Iterator[tuple[str, Value]]:
        """The loss with noise that never changes; and drawings of full captions, read by the probe if it is there."""
        source = PictureSource(Split.TEST, self.config.judged, self.size)
        pictures = [source[i] for i in range(len(source))]
        said, clip_ids = (
            np.stack(each) for each in zip(*(self.says(p, set(ATTRIBUTES)) for p in pictures), strict=True)
        )
        pixels = np.stack([picture.render(self.size) for picture in pictures])
        look, encode, draw = jax.jit(self.losses), jax.jit(self._moments), jax.jit(self._draw)
        losses, drawn = [], []
        for first in range(0, len(pictures), self.config.batch_size):
            rows = slice(first, first + self.config.batch_size)
            count, key = np.zeros(len(said[rows]), np.int32), jax.random.fold_in(jax.random.key(0), first)
            moments = encode(frozen, pixels[rows])
            losses.append(look(params, frozen, Captioned(count, count, moments, said[rows], clip_ids[rows]), key)[0])
            drawn.append(np.asarray(draw(params, frozen, said[rows], clip_ids[rows], key)))
        yield "dit/loss", float(np.concatenate(losses).mean())
        if (folder := self._holding("probe")) is not None:
            probe, truth = ProbeReader.load(folder), said - FIRSTS[:-1]
            yield "dit/accuracy", float((probe(np.concatenate(drawn)) == truth).mean())
            yield "dit/truth", float((probe(pixels) == truth).mean())
        yield "dit/drawings", np.concatenate([pixels[:SHOWN], np.concatenate(drawn)[:SHOWN]], axis=2)
        yield "dit/drawings", tuple(caption(p.identity, p.scene) for p in pictures[:SHOWN])

    def _holding(self, part: str) -> Path | None:
        """Where that part lies: among those that it builds on, or those that are shipped."""
        return next((each for each in (self.folder, checkpoint.TINY) if shipped.path(each, part).is_file()), None)

    @property
    def _bare(self) -> SubjectModel:
        """Without adapters."""
        return replace(self.model, config=replace(self.model.config, lora=None))

    @property
    def moments_shape(self) -> tuple[int, int, int]:
        """Of one picture."""
        height, width = token_grid(self.size, self.size)
        return 2, height * width, self.model.config.transformer.in_channels

    def _moments(self, frozen: Params, pixels: Array) -> Float[Array, "b two n c"]:
        """Of 8-bit pictures, float16."""
        images = pixels.astype(jnp.float32) / 127.5 - 1.0
        return jnp.stack(self.model.encode_picture(frozen, images), axis=1).astype(jnp.float16)

    def _draw(self, params: Params, frozen: Params, said: Array, clip_ids: Array, key: Array) -> Array:
        """8-bit pictures of captions."""
        grid, steps = token_grid(self.size, self.size), self.config.judge_steps
        noise = jax.random.normal(key, (len(said), grid[0] * grid[1], self.model.config.transformer.in_channels))
        times = jnp.asarray(time_grid(steps, noise.shape[1], self.shift), jnp.float32)
        whole = Stage(Attends(text=True), 0, steps)
        condition = self._condition(params, said, clip_ids)
        latents = sample(lambda x, t, c, _: self._velocity(params, x, t, c), condition, noise, times, [whole])
        return jnp.round(jnp.clip((self.model.decode(frozen, latents, grid) + 1.0) * 127.5, 0, 255)).astype(jnp.uint8)

    def _condition(self, params: Params, said: Array, clip_ids: Array) -> tuple[Array, Array, Array]:
        """Context, which of it is there, and the pooled vector."""
        table = params["captions"]["token_embedding"]["embedding"]
        pooled: Any = self.model.clip.apply({"params": params["clip"]}, clip_ids)
        return table[jnp.maximum(said, 0)], said != UNSAID, pooled

    def _velocity(self, params: Params, latents: Array, t: Array, condition: tuple[Array, Array, Array]) -> Array:
        context, there, pooled = condition
        grid = token_grid(self.size, self.size)
        velocity: Any = self._bare.transformer.apply(
            {"params": params["transformer"]},
            latents,
            context,
            pooled,
            t,
            jnp.asarray(image_ids(*grid)),
            jnp.zeros((context.shape[1], 3)),
            jnp.ones(len(latents)),
            mask=jnp.concatenate([there, jnp.ones(latents.shape[:2], bool)], axis=1),
        )
        return velocity
