"""Arrays in, pictures out: the model's three compiled programs, encode, sample and decode, in turn."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.diffusion.guidance import guided
from mllmsubj.diffusion.sampler import sample
from mllmsubj.diffusion.schedule import ShiftConfig, time_grid
from mllmsubj.diffusion.settings import SamplingConfig
from mllmsubj.diffusion.stages import Stage, plan_stages
from mllmsubj.models.subject import Condition, SubjectInputs, SubjectModel, token_grid
from mllmsubj.typing import Array, Float, Params

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


class Generator:
    """Pictures of a subject from its inputs; compiles once per shape, stage plan and kind of guidance."""

    def __init__(self, model: SubjectModel, shift: ShiftConfig):
        self.model, self.shift = model, shift
        self.condition = jax.jit(model.condition)
        self.sample = jax.jit(self._sample, static_argnames=("grid", "stages", "true"), donate_argnames="noise")
        self.decode = jax.jit(model.decode, static_argnames="grid")

    def __call__(
        self,
        params: Params,
        inputs: SubjectInputs,
        settings: SamplingConfig,
        seed: int,
        num_images: int = 1,
        progress: Progress | None = None,
    ) -> Float[np.ndarray, "images height width 3"]:
        """Pictures in [-1, 1] of one prompt; picture i depends on (seed, i) alone, however many are made.

        Without `progress` all steps are one program; with it, each step is a call of its own.
        """
        grid = token_grid(settings.height, settings.width)
        times = time_grid(settings.steps, grid[0] * grid[1], self.shift)
        stages = plan_stages(times, settings.tau1, settings.tau2, settings.last_stage)
        one = self.condition(params, inputs, jnp.full((1,), settings.guidance))
        size = min(settings.batch_size, num_images)
        scales = (settings.text_guidance, settings.reference_guidance)
        pictures: list[np.ndarray] = []
        while len(pictures) < num_images:
            report = (
                None
                if progress is None
                else _shifted(progress, len(pictures) // size, settings.steps, num_images, size)
            )
            noise = self.noise(seed, len(pictures), size, grid)
            condition = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape[1:])), one)
            run = partial(self.sample, params, condition, grid=grid, true=settings.true_guidance, scales=scales)
            latents = _in_steps(run, noise, times, stages, report)
            pictures.extend(np.asarray(self.decode(params, latents, grid), np.float32))
        return np.stack(pictures[:num_images])

    def noise(self, seed: int, first: int, count: int, grid: tuple[int, int]) -> Float[Array, "b n c"]:
        """Noise of pictures `first` to `first + count`, each from its own key."""
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(first, first + count))
        shape = (grid[0] * grid[1], self.model.config.transformer.in_channels)
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def _sample(
        self,
        params: Params,
        condition: Condition,
        noise: Float[Array, "b n c"],
        times: Float[Array, " steps1"],
        scales: tuple[Array | float, Array | float],
        *,
        grid: tuple[int, int],
        stages: tuple[Stage, ...],
        true: bool,
    ) -> Float[Array, "b n c"]:
        velocity = partial(self.model.velocity, params, grid)
        prepare = partial(self.model.prepare, params)
        return sample(guided(velocity, *scales) if true else velocity, condition, noise, times, stages, prepare)


def _in_steps(
    run: Callable[..., Array], noise: Array, times: np.ndarray, stages: tuple[Stage, ...], progress: Progress | None
) -> Array:
    """The whole run as one call, or, where somebody watches, a call per step."""
    grid = times.astype(np.float32)
    if progress is None:
        return run(noise=noise, times=grid, stages=stages)
    latents = noise
    for stage in stages:
        one = (Stage(stage.attends, 0, 1),)
        for i in range(stage.start, stage.stop):
            latents = run(noise=latents, times=grid[i : i + 2], stages=one)
            jax.block_until_ready(latents)
            progress(i + 1, len(times) - 1)
    return latents


def _shifted(progress: Progress, batch: int, steps: int, num_images: int, size: int) -> Progress:
    batches = -(-num_images // size)
    return lambda done, _: progress(batch * steps + done, batches * steps)
