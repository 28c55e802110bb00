"""Pictures of the first held-out examples, always from the same noise: to be looked at."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from mllmsubj.data.batch import Batch
from mllmsubj.data.settings import DataConfig
from mllmsubj.diffusion.schedule import time_grid
from mllmsubj.diffusion.settings import SamplingConfig
from mllmsubj.diffusion.stages import plan_stages
from mllmsubj.evals.evaluator import Value
from mllmsubj.evals.held_out import HeldOut
from mllmsubj.generate import Generator
from mllmsubj.models.subject import token_grid
from mllmsubj.train.run import Run
from mllmsubj.train.settings import ModesConfig, SamplesEvalConfig
from mllmsubj.typing import Params

MEANINGS: Mapping[str, str] = {
    "samples": "Reference, what the model draws from it and the prompt, and the data's own target."
}


class Samples:
    """ "samples": a row an example with its reference, what the model draws, and the target, side by side.

    The text beside each is its prompt. Picture i is what inference draws for it from the noise of (seed, i).
    """

    name = "samples"

    def __init__(self, run: Run, data: DataConfig, config: SamplesEvalConfig, seed: int = 0):
        """`seed`: of the noise. Raises UserError if `data` cannot be opened."""
        sampling, last = run.experiment.sampling, run.stages[1]
        self.every_steps, self.meanings = config.every_steps, MEANINGS
        self._run, self._seed = run, seed
        self.settings = replace(sampling, steps=config.steps or sampling.steps)
        # One size, so that what is compared is drawn in one batch.
        data = replace(data, sizes=((sampling.height, sampling.width),), max_references=1)
        self._held_out = HeldOut.open(run, data, config.count, "evals.samples.count")
        self.examples = self._held_out.count
        both = replace(last.stage, modes=ModesConfig(1.0, 0.0, 0.0, 0.0))
        self._inputs = jax.jit(replace(last, stage=both).inputs)
        self._generator = Generator(run.model, run.experiment.shift)

    def run(self, params: Params) -> Iterator[tuple[str, Value]]:
        """See `Evaluator.run`."""
        size = self._held_out.batch_size(self.examples)
        with closing(self._held_out.loader(size)) as loader:
            batch = self._held_out.spread(next(loader), loader, size)
        drawn = self._draw(params, batch, size)
        shown = [_fit(_gathered(batch.references[:, 0]), self.settings), drawn, _gathered(batch.target)]
        yield "samples", np.concatenate(shown, axis=2)[: self.examples]
        yield "samples", self._held_out.prompts(_gathered(batch.example)[: self.examples])

    def _draw(self, params: Params, batch: Batch, size: int) -> np.ndarray:
        """8-bit pictures [size, height, width, 3]."""
        settings, generator = self.settings, self._generator
        grid = token_grid(settings.height, settings.width)
        times = time_grid(settings.steps, grid[0] * grid[1], self._run.experiment.shift)
        condition = generator.condition(params, self._inputs(batch), jnp.full((size,), settings.guidance))
        latents = generator.sample(
            params,
            condition,
            generator.noise(self._seed, 0, size, grid),
            times.astype(np.float32),
            (settings.text_guidance, settings.reference_guidance),
            grid=grid,
            stages=plan_stages(times, settings.tau1, settings.tau2, settings.last_stage),
            true=settings.true_guidance,
        )
        pixels = _gathered(generator.decode(params, latents, grid)).astype(np.float32)
        return np.rint(np.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


def _gathered(array: jax.Array) -> np.ndarray:
    """All of it, on every process."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _fit(references: UInt8[np.ndarray, "b side side 3"], settings: SamplingConfig) -> np.ndarray:
    """Squares made as high as the pictures, by repeating or leaving out pixels."""
    rows = np.arange(settings.height) * references.shape[1] // settings.height
    return references[:, rows][:, :, rows]
