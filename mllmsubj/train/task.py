"""What the loop trains: the method's two stages (`train.setup`), or a task that another package brings."""

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
    """Everything that a training run is made of. Every process has one; arrays lie on the mesh."""

    @property
    def experiment(self) -> Experiment:
        """Its `train` section has the lengths of the stages and the batch size."""
        ...

    @property
    def mesh(self) -> Mesh: ...

    @property
    def bins(self) -> Mapping[str, BinnedMetrics]:
        """Of the metrics of a step."""
        ...

    @property
    def update_params(self) -> Params:
        """Frozen parameters that the update reads."""
        ...

    def trainable_params(self, step: int) -> int:
        """Number of parameters that update number `step` changes, counted from 0."""
        ...

    def init_state(self, trained: Params, step: int = 0) -> TrainState:
        """The state before the first update, with the optimizer of the stage of `step`.

        Shapes in, shapes out under `jax.eval_shape`.
        """
        ...

    def enter_stage(self, state: TrainState, step: int) -> TrainState:
        """After `step` updates: the state, at the border between two stages with a fresh optimizer state."""
        ...

    def batches(self, loader: Loader, step: int, throughput: Throughput) -> Generator[TrainBatch]:
        """Batches from the loader, whose next one is for update number `step`."""
        ...

    def compile_update(self, state: TrainState, batch: TrainBatch) -> Program:
        """`(state, update_params, batch.inputs) -> (state, metrics)` for batches of this form; donates the state."""
        ...

    def all_params(self, trained: Params) -> Params:
        """All parameters, as the run's evaluators take them."""
        ...

    def finish(
        self, workdir: Path, config: ConfigDict, state: TrainState, numbers: Mapping[str, float], seconds: float
    ) -> None:
        """Writes the run's result.

        `numbers`: of the evaluators at the last step, if they ran in this process; `seconds`: spent in training.
        """
        ...
