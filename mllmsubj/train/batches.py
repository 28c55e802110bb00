"""Batches between loader and update: placed on the mesh and, for the method's stages, encoded."""

from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from mllmsubj.data.batch import Batch, Rows
from mllmsubj.parallel import multihost
from mllmsubj.train.feature_cache import FeatureCache
from mllmsubj.train.features import FROZEN_ENCODERS, CachedFeatures, FeatureEncoder
from mllmsubj.train.programs import Program, Programs, encode_step_flops, form, lower_encode
from mllmsubj.train.throughput import Throughput
from mllmsubj.typing import Params


@runtime_checkable
class RowLoader(Protocol):
    """Iterator over batches, such as `data.loader.Loader`."""

    rows: np.ndarray
    """Numbers of the rows of a batch that this process reads."""

    def __next__(self) -> Any:
        """Returns this process's rows of the next batch."""
        ...


@dataclass(frozen=True)
class TrainBatch:
    """Inputs of one update, and the rows that they were made from."""

    inputs: Any
    """The update's argument, on the mesh."""
    rows: Rows
    """This process's rows as the loader read them, on the host."""
    size: int
    """Rows over all processes."""
    stage: int = 0
    """Index of the stage that trains on it."""
    flops: int = 0
    """Floating-point operations spent on `inputs`, over all devices."""


def global_batches(loader: RowLoader, size: int, mesh: Mesh, throughput: Throughput) -> Generator[TrainBatch]:
    """Yields batches of `size` rows over all processes, as the loader reads them."""
    while True:
        with throughput.waiting():
            rows = next(loader)
        yield TrainBatch(multihost.make_global_batch(rows, loader.rows, size, mesh), rows, size)


def encoded_batches(
    loader: RowLoader,
    size: int,
    stage_of: Callable[[int], int],
    encoders: tuple[FeatureEncoder, ...],
    frozen: Params,
    mesh: Mesh,
    cache: FeatureCache | None,
    step: int,
    throughput: Throughput,
) -> Generator[TrainBatch]:
    """Yields features of the batches of `global_batches`, from the cache if it contains all rows of a batch.

    `stage_of`: step -> index of its stage in `encoders`; `frozen`: the frozen parameters;
    `step`: number of the first batch. Batches that are not in the cache are stored there. Closes `cache` at the end.
    """
    params, programs = {name: frozen[name] for name in FROZEN_ENCODERS}, Programs(throughput)

    def program(encoder: FeatureEncoder, batch: Batch, cached: CachedFeatures | None = None) -> Program:
        """Compiles with the same output shardings with and without cached features: one update reads both."""
        shardings = None if cached is None else program(encoder, batch).compiled.output_shardings

        def compiled() -> Program:
            lowered = lower_encode(encoder, params, batch, cached, shardings)
            return Program(lowered.compile(), encode_step_flops(encoder, batch, cached))

        what = f"encoding of {batch.shape}{'' if cached is None else ' with cached features'}"
        return programs.get(what, (encoder, form(batch), form(cached)), compiled)

    with ExitStack() as stack:
        if cache is not None:
            stack.callback(cache.close)
        for number in count(step):
            stage, cached, store = stage_of(number), None, None
            encoder = encoders[stage]
            with throughput.waiting():
                rows = next(loader)
                if cache is not None:
                    cached, store = cache.find(encoder, rows, loader.rows, size)
            batch = multihost.make_global_batch(rows, loader.rows, size, mesh)
            encode = program(encoder, batch, cached)
            encoded = encode.compiled(params, batch) if cached is None else encode.compiled(params, batch, cached)
            if store is not None:
                store(encoded)
            yield TrainBatch(encoded, rows, size, stage, encode.flops)
