"""Images of held-out examples, generated as in inference, for evaluators."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import UInt8

from mllmsubj.config.sampling import SamplingConfig
from mllmsubj.data.batch import Batch
from mllmsubj.diffusion.schedule import time_grid
from mllmsubj.inference.generator import Generator
from mllmsubj.ops.patchify import token_grid
from mllmsubj.ops.pixels import to_uint8
from mllmsubj.train.setup import Setup
from mllmsubj.typing import Params


class ImageSampler:
    """Generates images for whole batches; image i is the one that inference generates from the noise of (seed, i)."""

    def __init__(self, setup: Setup, settings: SamplingConfig, seed: int) -> None:
        """`seed`: seed of the noise."""
        self.settings, self._setup, self._seed = settings, setup, seed
        self._inputs = jax.jit(replace(setup.stages[1].encoder, with_references=True).inputs)
        self._generator = Generator(setup.model, setup.experiment.shift)

    def __call__(self, params: Params, batch: Batch, first: int = 0) -> UInt8[np.ndarray, "b height width 3"]:
        """Returns the images of a batch on every process; `first`: number of the first row's image."""
        settings, generator, size = self.settings, self._generator, len(batch.example)
        grid = token_grid(settings.height, settings.width)
        times = time_grid(settings.steps, grid[0] * grid[1], self._setup.experiment.shift)
        condition = generator.condition(params, self._inputs(batch), jnp.full((size,), settings.guidance))
        latents, _ = generator.sample(
            params,
            condition,
            generator.noise(self._seed, first, size, grid),
            times.astype(np.float32),
            (settings.text_guidance, settings.reference_guidance),
            grid=grid,
            stages=settings.stages(times),
            cfg=settings.uses_cfg,
            stepper=settings.stepper,
        )
        pixels = all_gather(generator.decode(params, latents, grid)).astype(np.float32)
        return to_uint8(pixels)


def all_gather(array: jax.Array) -> np.ndarray:
    """Returns the whole array on every process."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)
