"""The two programs of training, pure: `encode` (frozen encoders) and `update` (everything that is trained).

They are separate programs so that a small chip need not hold the frozen encoders and the transformer at once, and so
that outputs of the encoders can be cached on disk: `update` gets the same arrays either way.
"""

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from mllmsubj.config.data import ReferenceConfig
from mllmsubj.config.train import StageConfig, TrainConfig
from mllmsubj.data.batch import Batch
from mllmsubj.data.images import normalised
from mllmsubj.diffusion.loss import interpolate, logit_normal, shifted_uniform, squared_error
from mllmsubj.diffusion.schedule import ShiftConfig, shift_exponent
from mllmsubj.models.layers import unstack
from mllmsubj.models.subject import Features, Layout, SubjectInputs, SubjectModel
from mllmsubj.ops.patchify import token_grid
from mllmsubj.parallel.sharding import constrain
from mllmsubj.train import modes
from mllmsubj.train.known import LATENTS, NULL, CachedFeatures, features_from_cache
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.train.state import TrainState, update_state
from mllmsubj.tree import join, split
from mllmsubj.typing import Array, Float, Int, Leaf, Params

TIME_BINS = 10
BINS = {
    "by_time": BinnedMetrics(
        "loss_t", tuple(f"{i / TIME_BINS:.1f}-{(i + 1) / TIME_BINS:.1f}" for i in range(TIME_BINS))
    ),
    "by_mode": BinnedMetrics("loss_mode", modes.NAMES),
}
"""Of the metrics that `update` returns."""
FROZEN_ENCODERS = ("mllm", "vae", "clip")
"""What `encode` reads of the frozen parameters; `update` reads the transformer."""


@flax.struct.dataclass
class Encoded:
    """Outputs of the frozen encoders for a batch. Leaves have an axis of parts (train.grad_accum_steps) in front."""

    features: Features
    target_mean: Leaf
    """[b, n, c]: packed latents."""
    target_std: Leaf
    """[b, n, c]: deviation of the VAE's posterior."""
    row: Leaf
    """[b] int32: number of the row in the whole batch; with seed and step it names the row's random numbers."""
    skipped: Leaf
    """[b] int32."""
    grid: tuple[int, int] = flax.struct.field(pytree_node=False)
    """Rows and columns of the target's tokens."""


@flax.struct.dataclass
class Draws:
    """The random numbers of a batch's rows."""

    t: Leaf
    """[b]."""
    noise: Leaf
    """[b, n, c]."""
    posterior: Leaf
    """[b, n, c], for the target's latents."""
    mode: Leaf
    """[b] int32, numbers in `modes.NAMES`."""


@dataclass(frozen=True)
class TrainStep:
    """Both programs of one stage."""

    model: SubjectModel
    train: TrainConfig
    stage: StageConfig
    first: int
    """The stage's first step."""
    rates: FrozenDict[str, float]
    """Path -> peak learning rate of what the stage trains."""
    optimizer: optax.GradientTransformation
    reference: ReferenceConfig
    shift: ShiftConfig
    null_ids: tuple[int, ...]
    """The MLLM's ids of the empty prompt."""
    null_text: tuple[int, int]
    """Start and stop of the text in there."""
    seed: int
    for_later: bool = False
    """Whether `encode` has the VAE read references for a later stage, which will find them in the cache."""

    @property
    def reads_references(self) -> bool:
        """Whether the VAE reads them."""
        return self.for_later or modes.union(self.stage.modes).reference

    def encode(self, encoders: Params, batch: Batch, known: CachedFeatures | None = None) -> Encoded:
        """The frozen encoders over a batch, part by part; the VAE reads references only where `reads_references`.

        What is `known` is not computed again.
        """
        null = {name: x for name, x in (known or {}).items() if name == NULL}  # has no rows
        said = {name: self._parts(x) for name, x in (known or {}).items() if name != NULL}
        parts = jax.tree.map(self._parts, batch)
        rows = self._parts(jnp.arange(len(batch.input_ids), dtype=jnp.int32))
        return jax.lax.map(lambda part: self._encode(encoders, part[0], part[1], part[2] | null), (parts, rows, said))

    def update(self, state: TrainState, transformer: Params, encoded: Encoded) -> tuple[TrainState, dict[str, Any]]:
        """One optimizer step over all parts; an update with NaN or Inf changes nothing but the count of such."""
        active, idle = split(state.params, set(self.rates))
        zeros = jax.tree.map(jnp.zeros_like, active)

        def part(gradients: Params, one: Encoded) -> tuple[Params, dict[str, Array]]:
            draws = self.draw(one, state.step)
            (_, metrics), new = jax.value_and_grad(self.loss, has_aux=True)(active, idle, transformer, one, draws)
            return jax.tree.map(lambda sum_, x: sum_ + x / self.train.grad_accum_steps, gradients, new), metrics

        gradients, metrics = jax.lax.scan(part, zeros, encoded)
        metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
        loss, ema_decay = metrics["loss_sum"], self.train.ema_decay
        new, said = update_state(state, gradients, loss, self.optimizer, self.rates, self.stage, self.first, ema_decay)
        return new, metrics | said

    def loss(
        self, active: Params, idle: Params, transformer: Params, encoded: Encoded, draws: Draws
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Mean over the rows of one part, and the sums and counts that make its metrics."""
        trained = join(active, idle)
        trained = trained if self.model.compute.scan_layers else unstack(trained)
        losses = self.losses(join(trained, {"transformer": transformer}), encoded, draws)
        bins = jnp.minimum((draws.t * TIME_BINS).astype(jnp.int32), TIME_BINS - 1)
        return jnp.mean(losses), {
            "loss_sum": jnp.sum(losses),
            "count": jnp.asarray(len(losses), jnp.float32),
            "by_time": _binned(losses, bins, TIME_BINS),
            "by_mode": _binned(losses, draws.mode, len(modes.NAMES)),
            "skipped": jnp.sum(encoded.skipped),
        }

    def losses(self, params: Params, encoded: Encoded, draws: Draws) -> Float[Array, " b"]:
        """Loss of each row of one part; `params`: without frozen encoders, laid out as the model's `compute` wants."""
        picture = encoded.target_mean.astype(jnp.float32)
        if self.train.sample_posterior:
            picture += encoded.target_std * draws.posterior
        latents, target = interpolate(picture, draws.noise, draws.t)
        condition = self.model.aggregate(params, encoded.features, jnp.full(len(draws.t), self.train.guidance))
        condition, active_tokens = modes.masked(condition, draws.mode), modes.union(self.stage.modes)
        return squared_error(
            self.model.velocity(params, encoded.grid, latents, draws.t, condition, active_tokens), target
        )

    def _encode(self, encoders: Params, batch: Batch, row: Int[Array, " b"], known: CachedFeatures) -> Encoded:
        inputs = self.inputs(batch)
        known = known or self._seen(encoders, batch, inputs)
        return Encoded(
            features=features_from_cache(self.model, encoders, inputs, known),
            target_mean=known["target_mean"],
            target_std=known["target_std"],
            row=row,
            skipped=batch.skipped,
            grid=token_grid(*batch.target.shape[1:3]),
        )

    def _seen(self, encoders: Params, batch: Batch, inputs: SubjectInputs) -> CachedFeatures:
        """What the VAE says, of target and references together."""
        (mean, std), *others = self.model.encode_images(encoders, (_signed(batch.target), *inputs.references))
        references = self.model.concatenate_references(others, len(mean))
        return dict(zip(LATENTS, (mean, std, references), strict=True))

    def inputs(self, batch: Batch) -> SubjectInputs:
        """What inference makes of the same pictures, from 8 bits."""
        tiles = normalised(batch.tiles, self.reference)
        count = batch.references.shape[1] if self.reads_references else 0
        pictures = [_signed(batch.references[:, i]) for i in range(count)]
        return SubjectInputs(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            null_ids=jnp.asarray([self.null_ids], jnp.int32),
            clip_ids=batch.clip_ids,
            pixel_values=tiles.reshape(-1, *tiles.shape[2:]),
            references=tuple(pictures),
            layout=Layout(batch.text, batch.images),
            null_text=self.null_text,
            reference_mask=batch.reference_mask if self.reads_references else None,
        )

    def draw(self, encoded: Encoded, step: Int[Array, ""]) -> Draws:
        """Of each row from (seed, step, row, purpose)."""
        run = jax.random.fold_in(jax.random.key(self.seed), step)
        n, c = encoded.target_mean.shape[1:]
        time = self.train.time

        def one(row: Array) -> Draws:
            key = jax.random.fold_in(run, row)
            purpose = [jax.random.fold_in(key, i) for i in range(4)]
            t = (
                logit_normal(purpose[0], time.mean, time.std)
                if time.density == "logit_normal"
                else shifted_uniform(purpose[0], shift_exponent(n, self.shift))
            )
            noise, posterior = (jax.random.normal(key, (n, c)) for key in purpose[1:3])
            return Draws(t, noise, posterior, modes.draw(purpose[3], self.stage.modes))

        return jax.vmap(one)(encoded.row)

    def _parts(self, x: Array) -> Array:
        """[b, …] -> [parts, b / parts, …]: part i has rows i, i + parts, …, so that each device keeps its own rows."""
        parts = jnp.swapaxes(
            x.reshape(len(x) // self.train.grad_accum_steps, self.train.grad_accum_steps, *x.shape[1:]), 0, 1
        )
        return constrain(parts, "parts", "batch", *["seq"] * (x.ndim - 1))


def _signed(pixels: Array) -> Float[Array, "*shape"]:
    """8 bits -> [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def _binned(values: Float[Array, " b"], bins: Int[Array, " b"], count: int) -> Float[Array, "two bins"]:
    """Per bin the sum and how many."""
    rows = jax.nn.one_hot(bins, count)
    return jnp.stack([values @ rows, rows.sum(axis=0)])
