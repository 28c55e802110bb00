"""What the loop trains: the paper's two stages (`train.run`), or a part of the tiny model (`pretrain.run`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jax.sharding import Mesh
from ml_collections import ConfigDict

from mllmsubj.config.schema import Experiment
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.train.state import TrainState
from mllmsubj.typing import Params


@runtime_checkable
class Task(Protocol):
    """All that a training run rests on. Every process holds one; arrays lie on the mesh."""

    @property
    def experiment(self) -> Experiment:
        """Its `train` says how long which stage is, and how large batches are."""
        ...

    @property
    def mesh(self) -> Mesh: ...

    @property
    def frozen(self) -> Params:
        """What no step changes."""
        ...

    @property
    def bins(self) -> Mapping[str, BinnedMetrics]:
        """Of the metrics that its steps return."""
        ...

    def stage(self, step: int) -> Any:
        """The stage that does update number `step`, counted from 0; its `first` is the number of its first one."""
        ...

    def state(self, trained: Params) -> TrainState:
        """Before the first update; shapes in, shapes out under `jax.eval_shape`."""
        ...

    def enter(self, state: TrainState, step: int) -> TrainState:
        """A state with fresh moments for the stage of `step`."""
        ...

    def compile(self, step: Any, state: TrainState, batch: Any) -> Any:
        """A `Program` of that stage for batches of this form."""
        ...

    def joined(self, trained: Params) -> Params:
        """All parameters, as its evaluators want them."""
        ...

    def finish(
        self, workdir: Path, config: ConfigDict, state: TrainState, numbers: Mapping[str, float], seconds: float
    ) -> None:
        """Writes what the run was for; `numbers`: of the evaluators at the last step; `seconds`: of training."""
        ...


Program = Any
"""`program(state, frozen, batch, known, keep)` gives the next state and metrics; see `train.programs.Programs`."""
