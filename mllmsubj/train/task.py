"""Interface of training tasks: the method's two stages (`train.setup`), or tasks of other packages."""

from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from mllmsubj.config.schema import Experiment
from mllmsubj.data.loader import Loader
from mllmsubj.train.batches import TrainBatch
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.train.programs import Program
from mllmsubj.train.state import TrainState
from mllmsubj.train.throughput import Throughput
from mllmsubj.typing import Params


@runtime_checkable
class Task(Protocol):
    """Everything that the training loop needs for a run; every process has one, with its arrays on the mesh."""

    @property
    def experiment(self) -> Experiment:
        """The run's config; its `train` section contains the lengths of the stages and the batch size."""
        ...

    @property
    def mesh(self) -> Mesh:
        """The device mesh."""
        ...

    @property
    def bins(self) -> Mapping[str, BinnedMetrics]:
        """Binned metrics of a step, by key."""
        ...

    @property
    def update_params(self) -> Params:
        """Frozen parameters that the update reads."""
        ...

    def num_trainable_params(self, step: int) -> int:
        """Returns the number of parameters that update number `step`, counted from 0, changes."""
        ...

    def init_state(self, trained: Params, step: int = 0) -> TrainState:
        """Returns the state before the first update, with the optimizer of the stage of `step`.

        Can be evaluated on shapes by `jax.eval_shape`.
        """
        ...

    def enter_stage(self, state: TrainState, step: int) -> TrainState:
        """Returns the state after `step` updates; at the start of a stage, with a new optimizer state."""
        ...

    def batches(self, loader: Loader, step: int, throughput: Throughput) -> Generator[TrainBatch]:
        """Yields batches from the loader, whose next one is for update number `step`."""
        ...

    def compile_update(self, state: TrainState, batch: TrainBatch) -> Program:
        """Compiles `(state, update_params, batch.inputs) -> (state, metrics)` for such batches; donates the state."""
        ...

    def all_params(self, trained: Params) -> Params:
        """Returns all parameters, in the layout of the run's evaluators."""
        ...

    def finish(
        self, workdir: Path, config: ConfigDict, state: TrainState, numbers: Mapping[str, float], seconds: float
    ) -> None:
        """Writes the run's result.

        `numbers`: metrics of the evaluators at the last step, if they ran in this process; `seconds`: training time.
        """
        ...
