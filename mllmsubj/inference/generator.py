"""Generation from arrays to images: the compiled programs encode, prepare, denoise and decode, one after the other."""

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
from mllmsubj.inference.offload import RunProgram, on_device
from mllmsubj.models.subject import Condition, SubjectInputs, SubjectModel
from mllmsubj.ops.patchify import token_grid
from mllmsubj.parallel.target import compiler_options
from mllmsubj.typing import Array, Float, Params, PyTree

Progress = Callable[[int, int], None]
"""Called with the number of steps done and the number of all steps."""


class Generator:
    """Generates images of a subject; compiles once for each shape, stage plan and kind of guidance."""

    def __init__(self, model: SubjectModel, shift: ShiftConfig, run: RunProgram = on_device) -> None:
        """Creates the programs; `run` moves parameters to them: `on_device` or `cpu_offload(mesh)`."""
        self.model, self.shift, self.run = model, shift, run
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
        """Generates images of one prompt, in [-1, 1]; image i depends on (seed, i) alone, not on `num_images`.

        Without `progress` all steps are one program; with it, each step is a separate call.
        """
        grid = token_grid(settings.height, settings.width)
        exact_times = time_grid(settings.steps, grid[0] * grid[1], self.shift)
        stages = settings.stages(exact_times)
        times = exact_times.astype(np.float32)
        size = min(settings.batch_size, num_images)
        batches = range(-(-num_images // size))
        starts = np.repeat(times[:-1, None], size, axis=1)
        guidance, scales = jnp.full((1,), settings.guidance), (settings.text_guidance, settings.reference_guidance)

        one = self.run(params, "encode", lambda loaded: self.condition(loaded, inputs, guidance))
        condition = jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *x.shape[1:])), one)
        modulation = self.run(params, "prepare", lambda loaded: self.prepare(loaded, starts, condition))

        def denoise(loaded: Params, batch: int) -> Array:
            options = dict(grid=grid, cfg=settings.uses_cfg, scales=scales, stepper=settings.stepper)
            run = partial(self.sample, loaded, condition, **options)
            noise = self.noise(seed, batch * size, size, grid)
            if progress is None:
                return run(noise, times, modulation=modulation, stages=stages)[0]
            state = STEPPERS[settings.stepper].start(noise)
            return _step_by_step(
                run, (noise, state), times, stages, modulation, _batch_progress(progress, batch, len(batches))
            )

        latents = self.run(params, "denoise", lambda loaded: [denoise(loaded, batch) for batch in batches])
        images = self.run(
            params,
            "decode",
            lambda loaded: [np.asarray(self.decode(loaded, x, grid), np.float32) for x in latents],
        )
        return np.concatenate(images)[:num_images]

    def noise(self, seed: int, first: int, count: int, grid: tuple[int, int]) -> Float[Array, "b n c"]:
        """Returns the initial noise of images `first` to `first + count - 1`, each from its own key."""
        return self._noise(np.uint32(seed), np.uint32(first), count=count, grid=grid)


@dataclass(frozen=True)
class _Programs:
    """Jitted functions of a model."""

    condition: jax.stages.Wrapped
    prepare: jax.stages.Wrapped
    sample: jax.stages.Wrapped
    decode: jax.stages.Wrapped
    noise: jax.stages.Wrapped


@cache
def _programs(model: SubjectModel) -> _Programs:
    """Returns the programs of a model, shared by its generators in this process, so that each is compiled once."""
    jit = partial(jax.jit, compiler_options=compiler_options())
    return _Programs(
        condition=jit(model.condition),
        prepare=jit(model.prepare),
        sample=jit(
            partial(_sample, model), static_argnames=("grid", "stages", "cfg", "stepper"), donate_argnames="latents"
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
    modulation: PyTree = None,
    state: PyTree = None,
    *,
    grid: tuple[int, int],
    stages: tuple[Stage, ...],
    cfg: bool,
    stepper: Name = "euler",
) -> tuple[Float[Array, "b n c"], PyTree]:
    """Returns latents at `times[-1]` from those at `times[0]`, and the stepper's state; see `diffusion.sampler.sample`.

    `modulation`: the output of `prepare` for these times, if it was computed before. `cfg`: classifier-free guidance.
    """
    plain = partial(model.velocity, params, grid)
    prepare = partial(model.prepare, params) if modulation is None else lambda *_: modulation
    velocity = guided(plain, *scales) if cfg else plain
    return sample(velocity, condition, latents, times, stages, prepare, STEPPERS[stepper], state)


def _step_by_step(
    run: Callable[..., tuple[Array, PyTree]],
    start: tuple[Array, PyTree],
    times: Float[np.ndarray, " steps1"],
    stages: tuple[Stage, ...],
    modulation: PyTree,
    progress: Progress,
) -> Array:
    """Runs all steps, one call per step so that progress can be reported; compiles one program per stage.

    `start`: initial noise and state of the stepper.
    """
    latents, state = start
    for stage in stages:
        one = (Stage(stage.active_tokens, 0, 1),)
        for i in range(stage.start, stage.stop):
            one_step = jax.tree.map(lambda x, i=i: x[i : i + 1], modulation)
            latents, state = run(latents, times[i : i + 2], modulation=one_step, state=state, stages=one)
            jax.block_until_ready(latents)
            progress(i + 1, len(times) - 1)
    return latents


def _batch_progress(progress: Progress, batch: int, batches: int) -> Progress:
    """Reports the steps of one batch as a share of the steps of all batches."""
    return lambda done, total: progress(batch * total + done, batches * total)
