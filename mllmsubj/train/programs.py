"""The two programs of a step, compiled for one shape of batch before they are first needed."""

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
from mllmsubj.train import modes
from mllmsubj.train.known import NULL, CachedFeatures
from mllmsubj.train.state import TrainState, state_shardings
from mllmsubj.train.step import FROZEN_ENCODERS, Encoded, TrainStep
from mllmsubj.typing import Params


@dataclass(frozen=True)
class Programs:
    """`encode` then `update`, as compiled code."""

    encode: jax.stages.Compiled
    encoded: Encoded
    """The form of what it gives."""
    update: jax.stages.Compiled
    flops: int
    """That both must spend on one batch."""
    seconds: float
    """It took to compile them."""
    features_from_cache: jax.stages.Compiled | None = None
    """`encode` where something is known already; see `with_cached_features`."""
    cached_flops: int = 0
    """As `flops`, with `features_from_cache` in the place of `encode`."""

    def __call__(
        self,
        state: TrainState,
        frozen: Params,
        batch: Batch,
        known: CachedFeatures | None = None,
        keep: Callable[[Encoded], None] | None = None,
    ) -> tuple[TrainState, dict[str, Any]]:
        """The next state and the step's metrics, still on their way; `state` is gone afterwards.

        `keep` sees what was encoded because nothing was `known`.
        """
        encoders = {name: frozen[name] for name in FROZEN_ENCODERS}
        if known is None:
            encoded = self.encode(encoders, batch)
            if keep is not None:
                keep(encoded)
        else:
            assert self.features_from_cache is not None
            encoded = self.features_from_cache(encoders, batch, known)
        return self.update(state, frozen["transformer"], encoded)


def compile_step(step: TrainStep, state: TrainState, frozen: Params, batch: Batch, mesh: Mesh) -> Programs:
    """Arguments may be arrays or ShapeDtypeStructs with shardings; only their forms are read."""
    start = time.perf_counter()
    encode = lower_encode(step, frozen, batch).compile()
    encoded = encoded_by(encode)
    update = lower_update(step, state, frozen, encoded, mesh).compile()
    return Programs(encode, encoded, update, step_flops(step, batch, encoded), time.perf_counter() - start)


def lower_encode(step: TrainStep, frozen: Params, batch: Batch) -> jax.stages.Lowered:
    """The first program."""
    encode = jax.jit(_functions(step)[0], compiler_options=compiler_options())
    return encode.lower({name: frozen[name] for name in FROZEN_ENCODERS}, batch)


def encoded_by(encode: jax.stages.Compiled) -> Encoded:
    """The form of what it gives, and how that lies on the mesh."""
    return with_sharding(encode.out_info, encode.output_shardings)


def lower_update(
    step: TrainStep, state: TrainState, frozen: Params, encoded: Encoded, mesh: Mesh
) -> jax.stages.Lowered:
    """The second program."""
    shardings = (state_shardings(state, mesh), None)
    options = compiler_options()
    update = jax.jit(_functions(step)[1], donate_argnames="state", out_shardings=shardings, compiler_options=options)
    return update.lower(state, frozen["transformer"], encoded)


def with_cached_features(
    programs: Programs, step: TrainStep, frozen: Params, batch: Batch, known: CachedFeatures
) -> Programs:
    """The same with a program for batches of which so much is known; it gives `update` arrays laid out as before."""
    start = time.perf_counter()
    shardings = programs.encode.output_shardings
    features_from_cache = jax.jit(_functions(step)[0], out_shardings=shardings, compiler_options=compiler_options())
    return replace(
        programs,
        features_from_cache=features_from_cache.lower(
            {name: frozen[name] for name in FROZEN_ENCODERS}, batch, known
        ).compile(),
        cached_flops=step_flops(step, batch, programs.encoded, known),
        seconds=time.perf_counter() - start,
    )


def step_flops(step: TrainStep, batch: Batch, encoded: Encoded, known: CachedFeatures | None = None) -> int:
    """Floating-point operations that both programs must spend on a batch; only shapes are read."""
    return encode_step_flops(step, batch, known) + update_step_flops(step, encoded)


def encode_step_flops(step: TrainStep, batch: Batch, known: CachedFeatures | None = None) -> int:
    """Of the first program alone."""
    parts = step.train.grad_accum_steps
    part = jax.eval_shape(partial(jax.tree.map, lambda x: x[::parts]), batch)
    inputs = jax.eval_shape(step.inputs, part)
    if known is None:
        return parts * encode_flops(step.model.config, inputs, batch.target.shape[1:3])
    return 0 if NULL in known else parts * encode_flops(step.model.config, replace(inputs, references=()))


def update_step_flops(step: TrainStep, encoded: Encoded) -> int:
    """Of the second program alone."""
    active_tokens = modes.union(step.stage.modes)
    return step.train.grad_accum_steps * train_flops(step.model.config, encoded.features, encoded.grid, active_tokens)


@cache
def _functions(step: TrainStep) -> tuple[Callable[..., Encoded], Callable[..., tuple[TrainState, dict[str, Any]]]]:
    """`encode` and `update`; the same objects for equal steps, so that JAX traces each once in a process."""
    return step.encode, step.update
