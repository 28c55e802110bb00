"""Pictures of the first held-out examples, always from the same noise: to be looked at."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mllmsubj import distributed
from mllmsubj.data.settings import DataConfig
from mllmsubj.diffusion.schedule import time_grid
from mllmsubj.diffusion.settings import SamplingConfig
from mllmsubj.diffusion.stages import plan_stages
from mllmsubj.generate import Generator
from mllmsubj.models.subject import token_grid
from mllmsubj.train.run import Run
from mllmsubj.train.settings import ModesConfig
from mllmsubj.typing import Float, Params


class Samples:
    """ "samples": a row an example with its reference, what the model draws, and the target, side by side."""

    name = "samples"

    def __init__(self, run: Run, data: DataConfig, count: int, settings: SamplingConfig, every_steps: int):
        self.every_steps, self._run, self._count, self._settings = every_steps, run, count, settings
        # One size, so that what is compared is drawn in one batch.
        self._data = replace(data, sizes=((settings.height, settings.width),), max_references=1)
        last = run.stages[1]
        both = replace(last.stage, modes=ModesConfig(1.0, 0.0, 0.0, 0.0))
        self._inputs = jax.jit(replace(last, stage=both).inputs)
        self._generator = Generator(run.model, run.experiment.shift)

    def run(self, params: Params) -> Iterator[tuple[str, float | np.ndarray]]:
        """See `Evaluator.run`."""
        mesh = self._run.mesh
        unit = mesh.shape["data"] * mesh.shape["fsdp"]
        size = -(-self._count // unit) * unit
        loader = self._run.loader(self._data, size)
        try:
            batch = distributed.spread(next(loader), loader.rows, size, mesh)
        finally:
            loader.close()
        drawn = self._draw(params, batch, size)
        shown = [_fit(_gathered(batch.references[:, 0]), self._settings), drawn, _gathered(batch.target)]
        yield "samples", np.concatenate(shown, axis=2)[: self._count]

    def _draw(self, params: Params, batch, size: int) -> np.ndarray:
        """8-bit pictures [size, height, width, 3]."""
        settings, generator = self._settings, self._generator
        grid = token_grid(settings.height, settings.width)
        times = time_grid(settings.steps, grid[0] * grid[1], self._run.experiment.shift)
        condition = generator.condition(params, self._inputs(batch), jnp.full((size,), settings.guidance))
        latents = generator.sample(
            params,
            condition,
            generator.noise(0, 0, size, grid),
            times.astype(np.float32),
            (settings.text_guidance, settings.reference_guidance),
            grid=grid,
            stages=plan_stages(times, settings.tau1, settings.tau2, settings.last_stage),
            true=settings.true_guidance,
        )
        pixels = _gathered(generator.decode(params, latents, grid))
        return np.rint(np.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


def _gathered(array: jax.Array) -> np.ndarray:
    """All of it, on every process."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _fit(references: Float[np.ndarray, "b side side 3"], settings: SamplingConfig) -> np.ndarray:
    """Squares made as high as the pictures, by repeating or leaving out pixels."""
    rows = np.arange(settings.height) * references.shape[1] // settings.height
    return references[:, rows][:, :, rows]
