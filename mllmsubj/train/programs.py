"""Encoding and update as compiled programs, one for each form of batch."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
from jax.sharding import Mesh

from mllmsubj.data.batch import Batch
from mllmsubj.models.flops import encode_flops, train_flops
from mllmsubj.parallel.sharding import with_sharding
from mllmsubj.parallel.target import compiler_options
from mllmsubj.train.features import NULL, CachedFeatures, Encoded, FeatureEncoder
from mllmsubj.train.state import TrainState, state_shardings
from mllmsubj.train.step import TrainStep
from mllmsubj.train.throughput import Throughput
from mllmsubj.typing import Params, PyTree

log = logging.getLogger("mllmsubj")


@dataclass(frozen=True)
class Program:
    """A compiled program."""

    compiled: jax.stages.Compiled
    flops: int
    """Floating-point operations that one call must spend, over all devices."""


class Programs:
    """Programs by key, each compiled on first use, while the throughput's clock is paused."""

    def __init__(self, throughput: Throughput) -> None:
        """Starts without programs."""
        self._throughput = throughput
        self._programs: dict[Any, Program] = {}

    def get(self, what: str, key: Any, make: Callable[[], Program]) -> Program:
        """Returns the program of a key; `make` compiles it, `what` is its name in the log."""
        if key not in self._programs:
            with self._throughput.paused():
                start = time.perf_counter()
                self._programs[key] = make()
            log.info("compiled %s: %.1f s", what, time.perf_counter() - start)
        return self._programs[key]


def form(batch: PyTree) -> Any:
    """Returns a batch's structure and shapes, which a program is compiled for; hashable."""
    return jax.tree.structure(batch), tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def lower_encode(
    encoder: FeatureEncoder,
    encoders: Params,
    batch: Batch,
    cached: CachedFeatures | None = None,
    shardings: PyTree | None = None,
) -> jax.stages.Lowered:
    """Lowers the encoding of a batch with features `cached`; `shardings`: those of its outputs, if not the compiler's.

    Arguments may be arrays or ShapeDtypeStructs with shardings; only their forms are read.
    """
    encode = jax.jit(_encode_of(encoder), out_shardings=shardings, compiler_options=compiler_options())
    return encode.lower(encoders, batch) if cached is None else encode.lower(encoders, batch, cached)


def encoded_by(encode: jax.stages.Compiled) -> Encoded:
    """Returns the shapes and shardings of a compiled encoding's output."""
    return with_sharding(encode.out_info, encode.output_shardings)


def lower_update(
    step: TrainStep, state: TrainState, transformer: Params, encoded: Encoded, mesh: Mesh
) -> jax.stages.Lowered:
    """Lowers the update, which donates the state; arguments as in `lower_encode`."""
    shardings = (state_shardings(state, mesh), None)
    options = compiler_options()
    update = jax.jit(_update_of(step), donate_argnames="state", out_shardings=shardings, compiler_options=options)
    return update.lower(state, transformer, encoded)


def encode_step_flops(encoder: FeatureEncoder, batch: Batch, cached: CachedFeatures | None = None) -> int:
    """Returns the floating-point operations that encoding a batch must spend; only shapes are read."""
    count = encoder.grad_accum_steps
    part = jax.eval_shape(partial(jax.tree.map, lambda x: x[::count]), batch)
    inputs = jax.eval_shape(encoder.inputs, part)
    if cached is None:
        return count * encode_flops(encoder.model.config, inputs, batch.target.shape[1:3])
    return 0 if NULL in cached else count * encode_flops(encoder.model.config, replace(inputs, references=()))


def update_step_flops(step: TrainStep, encoded: Encoded) -> int:
    """Returns the floating-point operations that an update must spend; only shapes are read."""
    each = train_flops(step.model.config, encoded.features, encoded.grid, step.active_tokens)
    return step.train.grad_accum_steps * each


@cache
def _encode_of(encoder: FeatureEncoder) -> Callable[..., Encoded]:
    """Returns the same object for equal encoders, so that JAX traces it once in a process."""
    return encoder.encode


@cache
def _update_of(step: TrainStep) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """Returns the same object for equal steps, as `_encode_of` does."""
    return step.update
