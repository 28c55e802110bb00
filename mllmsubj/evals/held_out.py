"""Held-out examples, which are not used in training."""

from dataclasses import dataclass, replace

import numpy as np

from mllmsubj.config.data import DataConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.data.batch import Batch
from mllmsubj.data.example import Source
from mllmsubj.data.loader import Loader
from mllmsubj.data.sources import open_source, registered
from mllmsubj.errors import UserError
from mllmsubj.parallel import multihost
from mllmsubj.train.setup import Setup

EXAMPLES = 10_000
"""Examples in a registered source's test split; smaller evaluations use the first ones of a fixed order."""
SEED = 0
"""Seed of a registered source and of that order; independent of the run's seed, so that runs are comparable."""


def held_out(experiment: Experiment) -> DataConfig:
    """Returns the config of the held-out data, without augmentation and score filters.

    Raises UserError if the experiment names none and its source has no test split.
    """
    data, source = experiment.data, experiment.evals.source
    if not source and not (data.source in registered() or data.source.startswith("tfds:")):
        raise UserError(f"{data.source!r} has no test split; name held-out data with --config.evals.source=…")
    return replace(
        data,
        source=source or data.source,
        split="test",
        examples=EXAMPLES,
        swap=0.0,
        flip=0.0,
        crop=1.0,
        remove_background=0.0,
        min_scores=(),
    )


@dataclass(frozen=True)
class HeldOut:
    """First `count` examples of a data set, opened once for any number of evaluations."""

    setup: Setup
    data: DataConfig
    source: Source
    count: int

    @classmethod
    def open(cls, setup: Setup, data: DataConfig, count: int, key: str) -> "HeldOut":
        """Opens `data`; its number of examples caps `count`, which is the value of config key `key`.

        Raises UserError if `count` is below 1 or the source cannot be opened.
        """
        if count < 1:
            raise UserError(f"config key {key} is {count}; it must be at least 1")
        source = open_source(data, SEED)
        return cls(setup, data, source, min(count, len(source)))

    def batch_size(self, least: int) -> int:
        """Returns the smallest batch size from `least` up that gives every device the same number of rows."""
        unit = self.setup.mesh.shape["data"] * self.setup.mesh.shape["fsdp"]
        return max(1, -(-least // unit)) * unit

    def loader(self, batch_size: int) -> Loader:
        """Returns a loader that starts at the first example.

        The order is the same for every batch size, provided that all targets have one size.
        """
        return self.setup.loader(self.data, batch_size, self.source, SEED)

    def make_global_batch(self, batch: Batch, loader: Loader, batch_size: int) -> Batch:
        """Returns the global batch on the mesh, made from this process's rows."""
        return multihost.make_global_batch(batch, loader.rows, batch_size, self.setup.mesh)

    def prompts(self, examples: np.ndarray) -> tuple[str, ...]:
        """Returns the prompts of the examples with these numbers."""
        return tuple(self.source[int(number)].prompt for number in examples)
