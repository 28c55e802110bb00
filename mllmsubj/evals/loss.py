"""The training loss on held-out examples, for each condition mode, with noise and times that never change."""

from collections.abc import Iterator
from dataclasses import astuple, replace
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj import distributed
from mllmsubj.data.settings import DataConfig
from mllmsubj.train import modes
from mllmsubj.train.run import Run
from mllmsubj.train.settings import ModesConfig
from mllmsubj.train.step import TOWERS, Encoded
from mllmsubj.typing import Array, Params

EVERY_MODE = ModesConfig(0.25, 0.25, 0.25, 0.25)


class HeldOutLoss:
    """ "loss/both", "loss/mllm", "loss/vae", "loss/none": the same examples and noise, other tokens masked.

    "loss/all" is their mean by the shares that the last stage trains them with: the number to compare runs by.
    """

    name = "loss"

    def __init__(self, run: Run, data: DataConfig, examples: int, every_steps: int):
        self.every_steps, self._run, self._data = every_steps, run, data
        self._batch_size = run.experiment.train.batch_size // run.experiment.train.accumulate
        self._batches = -(-examples // self._batch_size)
        last = run.stages[1]
        self._shares = np.asarray(astuple(last.stage.modes))
        # Seed 0 whatever the run's: runs are compared.
        self._step = replace(
            last, stage=replace(last.stage, modes=EVERY_MODE), train=replace(last.train, accumulate=1), seed=0
        )
        self._encode, self._judge = jax.jit(self._step.encode), jax.jit(self._sums)

    def run(self, params: Params) -> Iterator[tuple[str, float | np.ndarray]]:
        """See `Evaluator.run`."""
        loader = self._run.loader(self._data, self._batch_size)
        try:
            sums = np.zeros(len(modes.NAMES))
            for number, batch in enumerate(islice(loader, self._batches)):
                whole = distributed.spread(batch, loader.rows, self._batch_size, self._run.mesh)
                encoded = self._encode({name: params[name] for name in TOWERS}, whole)
                sums += jax.device_get(self._judge(params, encoded, number))
        finally:
            loader.close()
        means = sums / (self._batches * self._batch_size)
        yield "loss/all", float(means @ self._shares)
        for name, mean in zip(modes.NAMES, means, strict=True):
            yield f"loss/{name}", float(mean)

    def _sums(self, params: Params, encoded: Encoded, number: int) -> Array:
        """[modes]: losses summed over a batch's rows."""
        part = jax.tree.map(lambda x: x[0], encoded)
        draws = self._step.draw(part, jnp.asarray(number))

        def one(mode: Array) -> Array:
            return jnp.sum(self._step.losses(params, part, replace(draws, mode=jnp.full_like(draws.mode, mode))))

        return jax.lax.map(one, jnp.arange(len(modes.NAMES)))
