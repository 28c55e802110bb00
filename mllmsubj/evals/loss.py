"""Training loss on held-out examples for each condition mode, with fixed noise and timesteps."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import astuple, replace

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.config.data import DataConfig
from mllmsubj.config.train import LossEvalConfig, ModesConfig
from mllmsubj.evals.held_out import HeldOut
from mllmsubj.train import modes
from mllmsubj.train.evaluator import Value
from mllmsubj.train.features import FROZEN_ENCODERS, Encoded
from mllmsubj.train.setup import Setup
from mllmsubj.typing import Array, Float, Int, Params

EVERY_MODE = ModesConfig(0.25, 0.25, 0.25, 0.25)
MEANINGS: Mapping[str, str] = {
    "loss/all": "Squared error of the velocity, smaller is better: mean of the four below by their shares in training",
    "loss/both": "where the model sees the MLLM's tokens and the reference's VAE tokens",
    "loss/mllm": "where it sees the MLLM's tokens alone",
    "loss/vae": "where it sees the VAE's tokens alone, so the reference but no prompt",
    "loss/none": "where it sees neither",
}


class HeldOutLoss:
    """Evaluator of "loss/both", "loss/mllm", "loss/vae" and "loss/none": same examples and noise, other tokens masked.

    "loss/all" is their mean, weighted by the last stage's shares of the modes: the number for comparing runs.
    """

    name = "loss"

    def __init__(self, setup: Setup, data: DataConfig, config: LossEvalConfig, seed: int = 0) -> None:
        """`seed`: seed of the noise, independent of the run's. Raises UserError if `data` cannot be opened."""
        train, last = setup.experiment.train, setup.stages[1].step
        self.every_steps, self.meanings = config.every_steps, MEANINGS
        self._held_out = HeldOut.open(setup, data, config.examples, "evals.loss.examples")
        self.examples = self._held_out.count
        self._batch_size = self._held_out.batch_size(min(self.examples, train.batch_size // train.grad_accum_steps))
        self._shares = np.asarray(astuple(last.stage.modes))
        self._step = replace(
            last,
            stage=replace(last.stage, modes=EVERY_MODE),
            active_tokens=modes.active_tokens_of(EVERY_MODE),
            train=replace(last.train, grad_accum_steps=1),
            seed=seed,
        )
        encoder = replace(setup.stages[1].encoder, grad_accum_steps=1, with_references=True)
        self._encode, self._evaluate = jax.jit(encoder.encode), jax.jit(self._sums)

    def run(self, params: Params) -> Iterator[tuple[str, Value]]:
        """Yields the losses; see `Evaluator.run`."""
        sums = np.zeros(len(modes.NAMES))
        encoders = {name: params[name] for name in FROZEN_ENCODERS}
        with closing(self._held_out.loader(self._batch_size)) as loader:
            for first in range(0, self.examples, self._batch_size):
                batch = self._held_out.make_global_batch(next(loader), loader, self._batch_size)
                sums += jax.device_get(self._evaluate(params, self._encode(encoders, batch), first))
        means = sums / self.examples
        yield "loss/all", float(means @ self._shares)
        for name, mean in zip(modes.NAMES, means, strict=True):
            yield f"loss/{name}", float(mean)

    def _sums(self, params: Params, encoded: Encoded, first: Int[Array, ""]) -> Float[Array, " modes"]:
        """Returns losses summed over the rows within `examples`; `first`: number of the batch's first example."""
        part = jax.tree.map(lambda x: x[0], encoded)
        part = replace(part, row=part.row + first)  # noise depends on the example, not the batch size
        random_inputs = self._step.draw(part, jnp.asarray(0))
        counts = part.row < self.examples

        def one(mode: Array) -> Array:
            losses = self._step.losses(
                params, part, replace(random_inputs, mode=jnp.full_like(random_inputs.mode, mode))
            )
            return jnp.sum(jnp.where(counts, losses, 0.0))

        return jax.lax.map(one, jnp.arange(len(modes.NAMES)))
