"""Interface of the tiny model's components, as the training loop trains them."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from mllmsubj.config.data import DataConfig
from mllmsubj.data.example import Index
from mllmsubj.data.loader import RandomAccess, Reader
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.settings import ComponentConfig
from mllmsubj.train.evaluator import Value
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.typing import Array, Float, Params


class ComponentSource(RandomAccess, Protocol):
    """Numbered examples, all of one size."""

    def index(self) -> Index:
        """Returns the sizes of all examples."""
        ...


@runtime_checkable
class Component(Protocol):
    """A component of the tiny model and its pretraining; `init` and `losses` are pure functions."""

    @property
    def name(self) -> str:
        """Name of the component, one of `checkpoints.components.COMPONENTS`."""
        ...

    @property
    def config(self) -> ComponentConfig:
        """Training settings."""
        ...

    @property
    def size(self) -> int:
        """Side of its pictures in pixels."""
        ...

    @property
    def bins(self) -> Mapping[str, BinnedMetrics]:
        """Binned metrics that `losses` returns, by key."""
        ...

    @property
    def meanings(self) -> Mapping[str, str]:
        """Description of each number of `evaluate`."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Returns random trainable parameters, with layers stacked."""
        ...

    def frozen(self) -> Params:
        """Returns the parameters of the components that it builds on."""
        ...

    def source(self, pictures: PictureSource, threads: int) -> ComponentSource:
        """Returns the source that `reader` reads: the pictures, or features computed from them before training."""
        ...

    def reader(self, data: DataConfig) -> Reader:
        """Returns a reader of batches for `losses`."""
        ...

    def losses(
        self, params: Params, frozen: Params, batch: Any, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Returns the loss of each row and the binned metrics' sums and counts; `key`: random key of the step."""
        ...

    def evaluate(self, params: Params, frozen: Params) -> Iterator[tuple[str, Value]]:
        """Yields numbers and images of an evaluation on held-out pictures, the same ones every time."""
        ...


class ComponentEvaluator:
    """Evaluation of a component as a `train.evaluator.Evaluator`."""

    def __init__(self, component: Component, frozen: Params) -> None:
        """Evaluates `component` with the parameters `frozen` of the components that it builds on."""
        self.name, self.meanings = component.name, component.meanings
        self.every_steps, self.examples = component.config.eval_every_steps, component.config.num_eval_examples
        self._component, self._frozen = component, frozen

    def run(self, params: Params) -> Iterator[tuple[str, Value]]:
        """See `Evaluator.run`."""
        return self._component.evaluate(params, self._frozen)
