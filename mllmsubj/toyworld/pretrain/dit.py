"""Pretraining of the tiny transformer: text to image, as FLUX.1-dev is before the method adapts it.

Its text condition is an embedding table of captions (`captions.py`); CLIP encodes the caption's text and is trained
jointly.

Every second row has a clean reference view of the subject in the place of the method's reference tokens. FLUX.1-dev
carries a subject from one part of its canvas to another before any adapter is trained (In-Context LoRA, arXiv
2410.23775; UNO's data, arXiv 2504.02160, are generated this way), and adapters build on that; a small transformer that
was never trained on two views cannot do it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from mllmsubj.checkpoints import components
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.config.data import DataConfig
from mllmsubj.config.train import TimeConfig
from mllmsubj.data.tokenization import PromptEncoder
from mllmsubj.diffusion.loss import interpolate, logit_normal, squared_error
from mllmsubj.diffusion.sampler import sample
from mllmsubj.diffusion.schedule import ShiftConfig, time_grid
from mllmsubj.diffusion.stages import Stage
from mllmsubj.errors import UserError
from mllmsubj.models.layers import init_params, unstack
from mllmsubj.models.subject import Condition, SubjectModel
from mllmsubj.ops.patchify import token_grid
from mllmsubj.ops.pixels import from_uint8, to_uint8
from mllmsubj.toyworld import Picture, Split, caption
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.dataset.latents import EncodedPictures, Pictures, cached_latents
from mllmsubj.toyworld.pretrain.captions import (
    FIRSTS,
    OMITTED,
    WITH_REFERENCE_VIEW,
    WITHOUT_REFERENCE_VIEW,
    CaptionBatch,
    CaptionReader,
    encode_caption,
)
from mllmsubj.toyworld.pretrain.settings import DiTPretrainConfig
from mllmsubj.toyworld.probe.reader import ProbeReader
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, IDENTITY_ATTRIBUTES, numbers
from mllmsubj.toyworld.world.scene import SCENE_ATTRIBUTES
from mllmsubj.train.evaluator import Value
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.train.step import BINS, TIME_BINS
from mllmsubj.tree import unflatten
from mllmsubj.typing import ActiveTokens, Array, Float, Int, Params

SHOWN = 8
"""Number of pictures in each set of images."""


@dataclass(frozen=True)
class HeldOutPictures:
    """Held-out pictures that the transformer is evaluated on."""

    pictures: list[Picture]
    pixels: UInt8[np.ndarray, "n height width 3"]
    reference_view: UInt8[np.ndarray, "n height width 3"]
    """Reference views: other views of the same subjects, or the pictures themselves if there is one view each."""
    truth: Int[np.ndarray, "n attributes"]
    texts: tuple[str, ...]
    batches: list[tuple[CaptionBatch, Array]]
    """Batches, each with its random key."""


@dataclass(frozen=True)
class DiTComponent:
    """The transformer, CLIP and the captions' embedding table; see `pretrain.component.Component`."""

    model: SubjectModel
    config: DiTPretrainConfig
    size: int
    encoder: PromptEncoder
    time: TimeConfig
    shift: ShiftConfig
    folder: Path
    """Workdir, which may contain the components that it builds on."""

    name = "dit"
    bins: ClassVar[Mapping[str, BinnedMetrics]] = {"by_time": BINS["by_time"]}
    meanings: ClassVar[Mapping[str, str]] = {
        "dit/loss": "Squared error of the velocity on held-out pictures, smaller is better",
        "dit/accuracy": "Share of what captions say that the probe reads in pictures drawn after them",
        "dit/truth": "The same in the renderer's own pictures: the most that the probe can see",
        "dit/loss_alone": "As the loss, of captions that say nothing of the subject",
        "dit/loss_beside": "The same beside another view of the subject",
        "dit/identity": "Share of the subject's attributes that the probe reads in drawings beside another view",
    }

    def init(self, key: Array) -> Params:
        """Returns random parameters, without adapters."""
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        width = self.model.config.transformer.joint_attention_dim
        return {
            "transformer": init_params(self.without_adapters.stacked.transformer, keys[0]),
            "clip": init_params(self.without_adapters.stacked.clip, keys[1]),
            "captions": {"token_embedding": {"embedding": jax.random.normal(keys[2], (int(FIRSTS[-1]), width))}},
        }

    def frozen(self) -> Params:
        """Returns the VAE's parameters. Raises UserError if they are missing."""
        return self.load_components(self.name, "vae")

    def source(self, pictures: PictureSource, threads: int) -> EncodedPictures:
        """Returns pictures with their latents, two views of each subject."""
        p = self.config
        some = PictureSource(
            pictures.split, p.pictures, pictures.size, pictures.seed, views=2, pose_randomness=p.pose_randomness
        )
        return EncodedPictures(some, *self.cached_latents(some, threads))

    def cached_latents(self, pictures: Pictures, threads: int) -> tuple[str, Float[np.ndarray, "pictures two n c"]]:
        """Returns a name and the latent mean and std of the pictures, cached in the component's folder.

        Raises UserError as `latents.cached_latents` does.
        """
        frozen, latent_stats = self.frozen(), jax.jit(self.latent_stats)
        folder = self.find_folder("vae")
        assert folder is not None
        vae_hash = hashlib.sha256(components.path(folder, "vae").read_bytes()).hexdigest()
        encoder_id = f"{vae_hash} {self.model.config.vae} {self.model.compute.dtype}"

        def encode(pixels: UInt8[np.ndarray, "b height width 3"]) -> Float[np.ndarray, "b two n c"]:
            return jax.device_get(latent_stats(frozen, pixels))

        return cached_latents(pictures, encode, encoder_id, self.folder / self.name, threads)

    def reader(self, data: DataConfig) -> CaptionReader:
        """Returns a reader of captions."""
        channels = self.model.config.transformer.in_channels
        return CaptionReader(data, self.config, self.encoder, token_grid(self.size, self.size), channels)

    def losses(
        self, params: Params, frozen: Params, batch: CaptionBatch, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Returns the flow-matching loss on the VAE's latents, as the method defines it."""
        drawn = self.noisy(batch, key)
        losses = jnp.zeros(len(batch.example))
        for half, reference_view in ((WITH_REFERENCE_VIEW, True), (WITHOUT_REFERENCE_VIEW, False)):
            some = jax.tree.map(lambda x, half=half: x[half], (batch, drawn))
            losses = losses.at[half].set(self._losses(params, *some, reference_view=reference_view))
        rows = jax.nn.one_hot(jnp.minimum((drawn[1] * TIME_BINS).astype(jnp.int32), TIME_BINS - 1), TIME_BINS)
        return losses, {"by_time": jnp.stack([losses @ rows, rows.sum(axis=0)])}

    def noisy(self, batch: CaptionBatch, key: Array) -> tuple[Array, Array, Array]:
        """Returns noisy latents [b, n, c], their times [b] and their target velocities [b, n, c]."""
        keys = jax.random.split(key, 3)
        mean, std = jnp.moveaxis(batch.latent_stats.astype(jnp.float32), 1, 0)
        picture = mean + std * jax.random.normal(keys[0], mean.shape)
        t = jax.vmap(lambda key: logit_normal(key, self.time.mean, self.time.std))(
            jax.random.split(keys[1], len(picture))
        )
        latents, target = interpolate(picture, jax.random.normal(keys[2], picture.shape), t)
        return latents, t, target

    def _losses(
        self, params: Params, batch: CaptionBatch, drawn: tuple[Array, Array, Array], reference_view: bool
    ) -> Float[Array, " b"]:
        latents, t, target = drawn
        active_tokens = ActiveTokens(text=True, reference=reference_view)
        velocity = self.velocity(params, latents, t, self.condition(params, batch), active_tokens)
        return squared_error(velocity, target, batch.weights)

    def evaluate(self, params: Params, frozen: Params) -> Iterator[tuple[str, Value]]:
        """Evaluates losses, with fixed noise, and pictures generated from full captions and from reference views."""
        full, pairs = (self.held_out(frozen, self.config.num_eval_examples, views) for views in (1, 2))
        batch_losses = jax.jit(self._losses, static_argnames="reference_view")
        for name, held, reference_view in (("", full, False), ("_alone", pairs, False), ("_beside", pairs, True)):
            losses = [
                batch_losses(params, batch, self.noisy(batch, key), reference_view=reference_view)
                for batch, key in held.batches
            ]
            yield f"dit/loss{name}", float(np.concatenate(losses).mean())
        generate = jax.jit(
            lambda params, frozen, batch, key, reference_view: self.generate(
                params, frozen, self.condition(params, batch), key, ActiveTokens(text=True, reference=reference_view)
            ),
            static_argnums=4,
        )
        drawn, again = (
            np.concatenate([generate(params, frozen, *each, held is pairs) for each in held.batches])
            for held in (full, pairs)
        )
        if (folder := self.find_folder("probe")) is not None:
            probe, count = ProbeReader.load(folder), len(IDENTITY_ATTRIBUTES)
            yield "dit/accuracy", float((probe(drawn) == full.truth).mean())
            yield "dit/truth", float((probe(full.pixels) == full.truth).mean())
            yield "dit/identity", float((probe(again) == pairs.truth)[:, :count].mean())
        for name, held, pictures in (("drawings", full, [drawn]), ("views", pairs, [again, pairs.reference_view])):
            yield f"dit/{name}", np.concatenate([each[:SHOWN] for each in (held.pixels, *pictures)], axis=2)
            yield f"dit/{name}", held.texts[:SHOWN]

    def held_out(self, frozen: Params, count: int, views: int) -> HeldOutPictures:
        """Returns `count` held-out pictures: of one view with full captions, or of two views of each subject.

        With two views, the captions describe the scene only, and the second view is the reference.
        """
        source = PictureSource(
            Split.TEST, views * count, self.size, views=views, pose_randomness=self.config.pose_randomness
        )
        pictures = [source[i] for i in range(len(source))]
        pixels = np.stack([picture.render(self.size) for picture in pictures])
        size, encode = self.config.batch_size, jax.jit(self.latent_stats)
        latent_stats = np.concatenate([encode(frozen, pixels[i : i + size]) for i in range(0, len(pixels), size)])
        pictures, kept = pictures[::views], set(ATTRIBUTES) if views == 1 else set(SCENE_ATTRIBUTES)
        captions, clip_ids = (
            np.stack(each) for each in zip(*(encode_caption(self.encoder, p, kept) for p in pictures), strict=True)
        )
        number, even = np.zeros(len(captions), np.int32), np.ones((len(captions), latent_stats.shape[2]), np.float32)
        whole = CaptionBatch(
            number, number, latent_stats[::views], latent_stats[views - 1 :: views], even, captions, clip_ids
        )
        return HeldOutPictures(
            pictures=pictures,
            pixels=pixels[::views],
            reference_view=pixels[views - 1 :: views],
            truth=np.stack([numbers(*vars(picture).values()) for picture in pictures]),
            texts=tuple(caption(p.identity, p.scene) for p in pictures),
            batches=[
                (jax.tree.map(lambda x, i=i: x[i : i + size], whole), jax.random.fold_in(jax.random.key(0), i))
                for i in range(0, len(captions), size)
            ],
        )

    def load_components(self, component: str, *others: str) -> Params:
        """Returns the parameters of components `others`, which component `component` needs, in the model's layout.

        Raises UserError if one of them is missing.
        """
        leaves: dict[str, np.ndarray] = {}
        for other in others:
            if (folder := self.find_folder(other)) is None:
                raise UserError(
                    f"component {component} builds on component {other}, which is not in {self.folder}; "
                    f"pretrain that first: --component={other}"
                )
            leaves |= components.read(folder, (other,))
        params = jax.tree.map(jnp.asarray, unflatten(leaves))
        return params if self.model.compute.scan_layers else unstack(params)

    def find_folder(self, component: str) -> Path | None:
        """Returns the folder that contains component `component`: the workdir, else the shipped one, else None."""
        return next(
            (each for each in (self.folder, checkpoint.TINY) if components.path(each, component).is_file()), None
        )

    @property
    def without_adapters(self) -> SubjectModel:
        """The model without adapters."""
        return replace(self.model, config=replace(self.model.config, lora=None))

    def latent_stats(self, frozen: Params, pixels: Array) -> Float[Array, "b two n c"]:
        """Returns mean and std of the latents of 8-bit pictures, in float16."""
        images = from_uint8(pixels)
        return jnp.stack(self.model.encode_image(frozen, images), axis=1).astype(jnp.float16)

    def generate(
        self, params: Params, frozen: Params, condition: Condition, key: Array, active_tokens: ActiveTokens
    ) -> Array:
        """Generates 8-bit pictures [b, height, width, 3] of `condition` with classifier-free guidance.

        FLUX.1-dev was distilled from such guidance; the tiny transformer was not.
        """
        grid, steps = token_grid(self.size, self.size), self.config.eval_sampling_steps
        shape = (len(condition.pooled), grid[0] * grid[1], self.model.config.transformer.in_channels)
        noise = jax.random.normal(key, shape)
        times = jnp.asarray(time_grid(steps, shape[1], self.shift), jnp.float32)

        def velocity(
            latents: Array, t: Array, conditions: tuple[Condition, Condition], active_tokens: ActiveTokens
        ) -> Array:
            conditional, nothing = conditions
            null = self.velocity(params, latents, t, nothing, replace(active_tokens, reference=False))
            return null + self.config.eval_guidance * (
                self.velocity(params, latents, t, conditional, active_tokens) - null
            )

        empty_pooled: Any = self.model.clip.apply({"params": params["clip"]}, jnp.asarray(self.encoder("", 0).clip_ids))
        nothing = replace(
            condition,
            text_mask=jnp.zeros_like(condition.text_mask),
            image_mask=None if condition.image is None else jnp.zeros(condition.image.shape[:2], bool),
            pooled=jnp.broadcast_to(empty_pooled, condition.pooled.shape),
        )
        latents, _ = sample(velocity, (condition, nothing), noise, times, [Stage(active_tokens, 0, steps)])
        return to_uint8(self.model.decode(frozen, latents, grid))

    def condition(self, params: Params, batch: CaptionBatch) -> Condition:
        """Returns the transformer's condition for captions and reference views."""
        table = params["captions"]["token_embedding"]["embedding"]
        pooled: Any = self.model.clip.apply({"params": params["clip"]}, batch.clip_ids)
        return Condition(
            text=table[jnp.maximum(batch.captions, 0)],
            text_mask=batch.captions != OMITTED,
            image=None,
            null=None,
            reference=batch.reference_view[:, 0],
            reference_sizes=(token_grid(self.size, self.size),),
            pooled=pooled,
            guidance=jnp.ones(len(batch.captions)),
        )

    def velocity(
        self, params: Params, latents: Array, t: Array, condition: Condition, active_tokens: ActiveTokens
    ) -> Array:
        """Returns the velocity [b, n, c] of the model without adapters."""
        return self.without_adapters.velocity(
            params, token_grid(self.size, self.size), latents, t, condition, active_tokens
        )
