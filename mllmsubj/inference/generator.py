"""Arrays in, pictures out: the model's four compiled programs, encode, prepare, denoise and decode, in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.config.sampling import SamplingConfig
from mllmsubj.diffusion.guidance import guided
from mllmsubj.diffusion.sampler import sample
from mllmsubj.diffusion.schedule import ShiftConfig, time_grid
from mllmsubj.diffusion.stages import Stage
from mllmsubj.diffusion.steppers import STEPPERS, Name
from mllmsubj.inference.offload import Turn, on_device
from mllmsubj.models.subject import Condition, SubjectInputs, SubjectModel
from mllmsubj.ops.patchify import token_grid
from mllmsubj.parallel.target import compiler_options
from mllmsubj.typing import Array, Float, Params, PyTree

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


class Generator:
    """Pictures of a subject from its inputs; compiles once per shape, stage plan and kind of guidance."""

    def __init__(self, model: SubjectModel, shift: ShiftConfig, turn: Turn = on_device):
        """`turn`: where parameters are while they are not read; see mllmsubj/inference/offload.py."""
        self.model, self.shift, self.turn = model, shift, turn
        programs = _programs(model)
        self.condition, self.prepare, self.decode = programs.condition, programs.prepare, programs.decode
        self.sample, self._noise = programs.sample, programs.noise

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
        exact_times = time_grid(settings.steps, grid[0] * grid[1], self.shift)
        stages = settings.stages(exact_times)
        times = exact_times.astype(np.float32)
        size = min(settings.batch_size, num_images)
        batches = range(-(-num_images // size))
        starts = np.repeat(times[:-1, None], size, axis=1)
        guidance, scales = jnp.full((1,), settings.guidance), (settings.text_guidance, settings.reference_guidance)

        one = self.turn(params, "encode", lambda part: self.condition(part, inputs, guidance))
        condition = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape[1:])), one)
        moments = self.turn(params, "prepare", lambda part: self.prepare(part, starts, condition))

        def denoise(part: Params, batch: int) -> Array:
            options = dict(grid=grid, true=settings.uses_cfg, scales=scales, stepper=settings.stepper)
            run = partial(self.sample, part, condition, **options)
            noise = self.noise(seed, batch * size, size, grid)
            if progress is None:
                return run(noise, times, moments=moments, stages=stages)[0]
            state = STEPPERS[settings.stepper].start(noise)
            return _step_by_step(run, (noise, state), times, stages, moments, _part(progress, batch, len(batches)))

        latents = self.turn(params, "denoise", lambda part: [denoise(part, batch) for batch in batches])
        pictures = self.turn(
            params, "decode", lambda part: [np.asarray(self.decode(part, each, grid), np.float32) for each in latents]
        )
        return np.concatenate(pictures)[:num_images]

    def noise(self, seed: int, first: int, count: int, grid: tuple[int, int]) -> Float[Array, "b n c"]:
        """Noise of pictures `first` to `first + count`, each from its own key."""
        return self._noise(np.uint32(seed), np.uint32(first), count=count, grid=grid)


@dataclass(frozen=True)
class _Programs:
    """A model's jitted functions."""

    condition: jax.stages.Wrapped
    prepare: jax.stages.Wrapped
    sample: jax.stages.Wrapped
    decode: jax.stages.Wrapped
    noise: jax.stages.Wrapped


@cache
def _programs(model: SubjectModel) -> _Programs:
    """Shared by all generators of a model in this process, so that each program is traced and compiled once."""
    jit = partial(jax.jit, compiler_options=compiler_options())
    return _Programs(
        condition=jit(model.condition),
        prepare=jit(model.prepare),
        sample=jit(
            partial(_sample, model), static_argnames=("grid", "stages", "true", "stepper"), donate_argnames="latents"
        ),
        decode=jit(model.decode, static_argnames="grid"),
        noise=jit(partial(_noise, channels=model.config.transformer.in_channels), static_argnames=("count", "grid")),
    )


def _noise(seed: Array, first: Array, count: int, grid: tuple[int, int], channels: int) -> Float[Array, "b n c"]:
    numbers = first + jnp.arange(count, dtype=jnp.uint32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(numbers)
    return jax.vmap(lambda key: jax.random.normal(key, (grid[0] * grid[1], channels)))(keys)


def _sample(
    model: SubjectModel,
    params: Params,
    condition: Condition,
    latents: Float[Array, "b n c"],
    times: Float[Array, " steps1"],
    scales: tuple[Array | float, Array | float],
    moments: PyTree = None,
    state: PyTree = None,
    *,
    grid: tuple[int, int],
    stages: tuple[Stage, ...],
    true: bool,
    stepper: Name = "euler",
) -> tuple[Float[Array, "b n c"], PyTree]:
    """Latents at `times[-1]` from those at `times[0]`, and the stepper's state; see `diffusion.sampler.sample`.

    `moments`: what `prepare` returns for these times, if it was called before. `true`: with classifier-free guidance.
    """
    plain = partial(model.velocity, params, grid)
    prepare = partial(model.prepare, params) if moments is None else lambda *_: moments
    velocity = guided(plain, *scales) if true else plain
    return sample(velocity, condition, latents, times, stages, prepare, STEPPERS[stepper], state)


def _step_by_step(
    run: Callable[..., tuple[Array, PyTree]],
    start: tuple[Array, PyTree],
    times: Float[np.ndarray, " steps1"],
    stages: tuple[Stage, ...],
    moments: PyTree,
    progress: Progress,
) -> Array:
    """All steps, with a call per step so that progress can be reported; one program per stage, however many steps.

    `start`: noise and the stepper's state.
    """
    latents, state = start
    for stage in stages:
        one = (Stage(stage.active_tokens, 0, 1),)
        for i in range(stage.start, stage.stop):
            moment = jax.tree.map(lambda x, i=i: x[i : i + 1], moments)
            latents, state = run(latents, times[i : i + 2], moments=moment, state=state, stages=one)
            jax.block_until_ready(latents)
            progress(i + 1, len(times) - 1)
    return latents


def _part(progress: Progress, batch: int, batches: int) -> Progress:
    """Reports one batch's steps as part of all batches' steps."""
    return lambda done, total: progress(batch * total + done, batches * total)
