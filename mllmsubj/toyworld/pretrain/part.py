"""What a part of the tiny model must say so that the training loop can train it."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from mllmsubj.config.data import DataConfig
from mllmsubj.data.example import Index
from mllmsubj.data.loader import Numbered, Reader
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.settings import PartConfig
from mllmsubj.train.evaluator import Value
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.typing import Array, Float, Params


class PartSource(Numbered, Protocol):
    """Numbered examples, all of one size."""

    def index(self) -> Index: ...


@runtime_checkable
class Part(Protocol):
    """Pure but for `judge`."""

    @property
    def name(self) -> str: ...

    @property
    def config(self) -> PartConfig: ...

    @property
    def size(self) -> int:
        """Pixels of the side of its pictures."""
        ...

    @property
    def bins(self) -> Mapping[str, BinnedMetrics]:
        """Of the metrics that `losses` returns."""
        ...

    @property
    def meanings(self) -> Mapping[str, str]:
        """What each of the numbers of `judge` is."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Random parameters of what it trains, stacked."""
        ...

    def frozen(self) -> Params:
        """What it builds on."""
        ...

    def source(self, pictures: PictureSource, threads: int) -> PartSource:
        """What its reader reads: the pictures, or what it made of them ahead of training."""
        ...

    def reader(self, data: DataConfig) -> Reader: ...

    def losses(
        self, params: Params, frozen: Params, batch: Any, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Of each row, and sums and counts that make its metrics; `key`: of this step."""
        ...

    def judge(self, params: Params, frozen: Params) -> Iterator[tuple[str, Value]]:
        """Numbers and pictures, on held-out pictures, always the same ones."""
        ...


class Judge:
    """A part's judgement as an `evals.evaluator.Evaluator`."""

    def __init__(self, part: Part, frozen: Params):
        self.name, self.meanings = part.name, part.meanings
        self.every_steps, self.examples = part.config.judge_every_steps, part.config.judged
        self._part, self._frozen = part, frozen

    def run(self, params: Params) -> Iterator[tuple[str, Value]]:
        """See `Evaluator.run`."""
        return self._part.judge(params, self._frozen)
