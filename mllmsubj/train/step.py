"""The training step: a pure function from state and features to the next state and metrics."""

from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from mllmsubj.config.train import StageConfig, TrainConfig
from mllmsubj.diffusion.loss import interpolate, logit_normal, shifted_uniform, squared_error
from mllmsubj.diffusion.schedule import ShiftConfig, shift_exponent
from mllmsubj.models.layers import unstack
from mllmsubj.models.subject import SubjectModel
from mllmsubj.train import modes
from mllmsubj.train.features import Encoded
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.train.state import TrainState, update_state
from mllmsubj.tree import join, split
from mllmsubj.typing import ActiveTokens, Array, Float, Int, Leaf, Params

TIME_BINS = 10
BINS = {
    "by_time": BinnedMetrics(
        "loss_t", tuple(f"{i / TIME_BINS:.1f}-{(i + 1) / TIME_BINS:.1f}" for i in range(TIME_BINS))
    ),
    "by_mode": BinnedMetrics("loss_mode", modes.NAMES),
}
"""Binned metrics that `update` returns, by key."""


@flax.struct.dataclass
class RandomInputs:
    """The random numbers of a batch's rows."""

    t: Leaf
    """[b]: timesteps in [0, 1]."""
    noise: Leaf
    """[b, n, c]: Gaussian noise."""
    posterior: Leaf
    """[b, n, c]: Gaussian noise of the VAE's posterior of the target."""
    mode: Leaf
    """[b] int32: indices in `modes.NAMES`."""


@dataclass(frozen=True)
class TrainStep:
    """The training step of one stage."""

    model: SubjectModel
    train: TrainConfig
    stage: StageConfig
    active_tokens: ActiveTokens
    """Groups of tokens that any of the stage's condition modes attends to."""
    rates: FrozenDict[str, float]
    """Path -> peak learning rate of each parameter that the stage trains."""
    optimizer: optax.GradientTransformation
    shift: ShiftConfig
    seed: int

    def update(self, state: TrainState, transformer: Params, encoded: Encoded) -> tuple[TrainState, dict[str, Any]]:
        """Applies one optimizer step over all microbatches; an update with NaN or Inf is skipped and counted.

        `transformer`: the frozen parameters of the transformer, the subtree of that name.
        """
        active, inactive = split(state.params, set(self.rates))
        zeros = jax.tree.map(jnp.zeros_like, active)

        def microbatch(gradients: Params, one: Encoded) -> tuple[Params, dict[str, Array]]:
            random_inputs = self.draw(one, state.step)
            (_, metrics), new = jax.value_and_grad(self.loss, has_aux=True)(
                active, inactive, transformer, one, random_inputs
            )
            return jax.tree.map(lambda sum_, x: sum_ + x / self.train.grad_accum_steps, gradients, new), metrics

        gradients, metrics = jax.lax.scan(microbatch, zeros, encoded)
        metrics = jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)
        new, of_update = update_state(
            state, gradients, metrics["loss_sum"], self.optimizer, self.stage, self.rates, self.train.ema_decay
        )
        return new, metrics | of_update

    def loss(
        self, active: Params, inactive: Params, transformer: Params, encoded: Encoded, random_inputs: RandomInputs
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Returns the mean over the rows of one microbatch, and the sums and counts for its metrics."""
        trained = join(active, inactive)
        trained = trained if self.model.compute.scan_layers else unstack(trained)
        losses = self.losses(join(trained, {"transformer": transformer}), encoded, random_inputs)
        bins = jnp.minimum((random_inputs.t * TIME_BINS).astype(jnp.int32), TIME_BINS - 1)
        return jnp.mean(losses), {
            "loss_sum": jnp.sum(losses),
            "count": jnp.asarray(len(losses), jnp.float32),
            "by_time": _binned(losses, bins, TIME_BINS),
            "by_mode": _binned(losses, random_inputs.mode, len(modes.NAMES)),
            "skipped": jnp.sum(encoded.skipped),
        }

    def losses(self, params: Params, encoded: Encoded, random_inputs: RandomInputs) -> Float[Array, " b"]:
        """Returns each row's loss; `params`: all but the frozen encoders, in the layout of the model's `compute`.

        Source: rectified flow, arXiv 2209.03003.
        """
        image = encoded.target_mean.astype(jnp.float32)
        if self.train.sample_posterior:
            image += encoded.target_std * random_inputs.posterior
        latents, target_velocity = interpolate(image, random_inputs.noise, random_inputs.t)
        condition = self.model.aggregate(params, encoded.features, jnp.full(len(random_inputs.t), self.train.guidance))
        condition = modes.mask_condition(condition, random_inputs.mode)
        velocity = self.model.velocity(params, encoded.grid, latents, random_inputs.t, condition, self.active_tokens)
        return squared_error(velocity, target_velocity)

    def draw(self, encoded: Encoded, step: Int[Array, ""]) -> RandomInputs:
        """Generates each row's random numbers from (seed, step, row, purpose)."""
        step_key = jax.random.fold_in(jax.random.key(self.seed), step)
        n, c = encoded.target_mean.shape[1:]
        time = self.train.time

        def one(row: Array) -> RandomInputs:
            row_key = jax.random.fold_in(step_key, row)
            keys = [jax.random.fold_in(row_key, i) for i in range(4)]
            t = (
                logit_normal(keys[0], time.mean, time.std)
                if time.density == "logit_normal"
                else shifted_uniform(keys[0], shift_exponent(n, self.shift))
            )
            noise, posterior = (jax.random.normal(key, (n, c)) for key in keys[1:3])
            return RandomInputs(t, noise, posterior, modes.draw(keys[3], self.stage.modes))

        return jax.vmap(one)(encoded.row)


def _binned(values: Float[Array, " b"], bins: Int[Array, " b"], count: int) -> Float[Array, "two bins"]:
    """Returns the sum and number of the values in each bin."""
    rows = jax.nn.one_hot(bins, count)
    return jnp.stack([values @ rows, rows.sum(axis=0)])
