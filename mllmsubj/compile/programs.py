"""Programs of a step, compiled with abstract arguments that are sharded over a slice's mesh."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllmsubj.compile import inputs
from mllmsubj.config.sampling import SamplingConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.diffusion.guidance import evaluated
from mllmsubj.diffusion.schedule import time_grid
from mllmsubj.diffusion.stages import Stage
from mllmsubj.errors import UserError
from mllmsubj.inference.generator import Generator
from mllmsubj.inference.offload import PARAMETER_GROUPS, parameters_of
from mllmsubj.inference.parameters import inference_model, inference_shapes
from mllmsubj.models.flops import aggregator_flops, encode_flops, modulation_flops, sample_flops, vae_decode_flops
from mllmsubj.models.quantize import quantize_frozen
from mllmsubj.models.subject import Condition, SubjectModel
from mllmsubj.ops.patchify import token_grid
from mllmsubj.parallel.sharding import bytes_per_device, sharded_shapes, with_sharding
from mllmsubj.parallel.target import compiling_for
from mllmsubj.parallel.topologies import compile_there
from mllmsubj.train import programs as train_programs
from mllmsubj.train.features import FROZEN_ENCODERS
from mllmsubj.train.setup import check_batch, make_stages, trained_paths
from mllmsubj.train.state import new_state, state_shardings
from mllmsubj.tree import split
from mllmsubj.typing import ActiveTokens, Params

Step = Literal["train", "sample", "encode"]

LEAST_EFFORT = -1.0
"""Compiler effort with which compiling takes minutes instead of a quarter of an hour. The program prefetches less, and
therefore moves more data, than one compiled with the usual effort, as for training and sampling."""


@dataclass(frozen=True)
class Program:
    """One compiled program of a step."""

    name: str
    compiled: jax.stages.Compiled
    flops: int
    """Model FLOPs of a run, over all chips."""
    resident: int
    """Bytes per device that stay allocated during the run and are not arguments of the program."""
    seconds: float
    """Seconds of tracing and compiling."""


class OutOfMemoryError(Exception):
    """Raised if a program does not fit in memory; arguments: its name, the compiler's message, seconds until then."""


def compile_programs(step: Step, experiment: Experiment, mesh: Mesh) -> Iterator[Program]:
    """Compiles the programs in running order; only shapes are read, so weights of any size need no memory.

    "auto" in `compute` is resolved for TPUs. Raises UserError for a batch that the mesh does not divide, and
    DoesNotFit for a program that needs more memory than a chip has.
    """
    # An abstract mesh: the few values computed while tracing must not be sent to devices that are not attached.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), compiling_for("tpu"):
        yield from _sample(experiment, mesh) if step == "sample" else _train(experiment, mesh, step == "encode")


def _train(experiment: Experiment, mesh: Mesh, encode_only: bool) -> Iterator[Program]:
    """Compiles the programs of stage 2, whose sequences are the longest."""
    train = experiment.train
    check_batch(train.batch_size, train.grad_accum_steps, mesh)
    model = SubjectModel(experiment.model, experiment.compute.resolve())
    params = model.abstract_params()
    stages = make_stages(experiment, model, params, inputs.NULL_IDS, inputs.NULL_TEXT)
    trained, frozen = split(params, trained_paths(params, stages))
    stage, step = stages[1], stages[1].step
    begin = partial(new_state, active=set(step.rates), optimizer=step.optimizer, ema=train.ema_decay > 0)
    state = jax.eval_shape(begin, trained)
    state, frozen = with_sharding(state, state_shardings(state, mesh)), _stored(frozen, experiment, mesh)
    batch, encoders = inputs.train_batch(experiment, mesh), {name: frozen[name] for name in FROZEN_ENCODERS}

    encode, seconds = _compiled("encode", lambda: train_programs.lower_encode(stage.encoder, encoders, batch))
    work = train_programs.encode_step_flops(stage.encoder, batch)
    yield Program(
        "encode", encode, work, 0 if encode_only else bytes_per_device((state, frozen["transformer"])), seconds
    )
    if not encode_only:
        encoded = train_programs.encoded_by(encode)
        transformer = frozen["transformer"]
        update, seconds = _compiled(
            "update", lambda: train_programs.lower_update(step, state, transformer, encoded, mesh)
        )
        work = train_programs.update_step_flops(step, encoded)
        yield Program("update", update, work, bytes_per_device((encoders, batch)), seconds)


def _sample(experiment: Experiment, mesh: Mesh) -> Iterator[Program]:
    """Compiles the programs with which `Generator` generates one batch of images of one reference."""
    settings = experiment.sampling
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if settings.batch_size % devices:
        raise UserError(
            f"sampling.batch_size {settings.batch_size} is not divisible by mesh axes data x fsdp ({devices}); "
            f"use a multiple, such as {-(-settings.batch_size // devices) * devices}"
        )
    stored = SubjectModel(experiment.model, experiment.compute.resolve())
    shapes = inference_shapes(stored)
    params = sharded_shapes(shapes, mesh)
    subject = inference_model(stored)
    generator, model, size = Generator(subject, experiment.shift), subject.config, settings.batch_size
    grid = token_grid(settings.height, settings.width)
    tokens = grid[0] * grid[1]
    stages = settings.stages(time_grid(settings.steps, tokens, experiment.shift))

    def whole(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    asked, guidance = inputs.request(experiment, mesh), whole(1)
    mine = {group: parameters_of(params, group) for group in PARAMETER_GROUPS}
    one: Condition = jax.eval_shape(generator.condition, mine["encode"], asked, guidance)
    condition = jax.tree.map(lambda x: whole(size, *x.shape[1:], dtype=x.dtype), one)
    noise, times = whole(size, tokens, model.transformer.in_channels), whole(settings.steps + 1)
    starts = whole(settings.steps, size)
    modulation = jax.tree.map(
        lambda x: whole(*x.shape, dtype=x.dtype), jax.eval_shape(generator.prepare, mine["prepare"], starts, condition)
    )
    seen = _steps_by_tokens(settings, stages)
    options = dict(grid=grid, stages=stages, cfg=settings.uses_cfg, stepper=settings.stepper)
    arguments = mine["denoise"], condition, noise, times, (1.0, 1.0), modulation
    lowered: dict[str, tuple[Callable[[], jax.stages.Lowered], int]] = {
        "encode": (
            lambda: generator.condition.lower(mine["encode"], asked, guidance),
            encode_flops(model, asked) + _aggregate_flops(experiment, asked.layout.text, one),
        ),
        "prepare": (
            lambda: generator.prepare.lower(mine["prepare"], starts, condition),
            settings.steps * size * modulation_flops(model.transformer),
        ),
        "denoise": (
            lambda: generator.sample.lower(*arguments, **options),
            sample_flops(model, condition, seen, tokens)
            - sum(steps for _, steps in seen) * size * modulation_flops(model.transformer),
        ),
        "decode": (
            lambda: generator.decode.lower(mine["decode"], noise, grid),
            size * vae_decode_flops(model.vae, settings.height, settings.width),
        ),
    }
    for name, (lower, flops) in lowered.items():
        compiled, seconds = _compiled(name, lower)
        waiting = (
            {} if experiment.compute.offload else {other: mine[other] for other in PARAMETER_GROUPS if other != name}
        )
        yield Program(name, compiled, flops, bytes_per_device(waiting), seconds)


def _steps_by_tokens(settings: SamplingConfig, stages: Sequence[Stage]) -> list[tuple[ActiveTokens, int]]:
    """Returns, for each evaluation of the transformer in a stage, its active tokens and the stage's number of steps."""
    return [
        (active_tokens, stage.stop - stage.start)
        for stage in stages
        for active_tokens in (evaluated(stage.active_tokens) if settings.uses_cfg else (stage.active_tokens,))
    ]


def _aggregate_flops(experiment: Experiment, text: tuple[int, int], one: Condition) -> int:
    tokens = text[1] - text[0], one.image.shape[1], one.null.shape[1]
    return sum(aggregator_flops(experiment.model.dla, count) for count in tokens)


def _compiled(name: str, lower: Callable[[], jax.stages.Lowered]) -> tuple[jax.stages.Compiled, float]:
    start = time.perf_counter()
    lowered = lower()
    try:
        compiled = compile_there(lowered, LEAST_EFFORT)
    except jax.errors.JaxRuntimeError as error:
        if not re.search(r"RESOURCE_EXHAUSTED.*\bhbm\b", str(error), re.IGNORECASE | re.DOTALL):
            raise
        raise OutOfMemoryError(name, str(error), time.perf_counter() - start) from error
    return compiled, time.perf_counter() - start


def _stored(params: Params, experiment: Experiment, mesh: Mesh) -> Params:
    """Returns the shapes as stored on the chips: in 8 bits if the config's `frozen_dtype` is int8."""
    if experiment.model.frozen_dtype == "int8":
        params = jax.eval_shape(quantize_frozen, params)
    return sharded_shapes(params, mesh)
