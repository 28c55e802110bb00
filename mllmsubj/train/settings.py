"""What a config says of training; see configs/base.py for units."""

import math
from dataclasses import astuple, dataclass
from typing import Literal

from mllmsubj.errors import UserError

Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class ModesConfig:
    """How often an example is trained with which condition; the four sum to 1. Each is one that the sampler uses."""

    both: float
    mllm: float
    vae: float
    none: float

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0 or not math.isclose(sum(astuple(self)), 1.0, abs_tol=1e-6):
            raise UserError(f"condition modes {astuple(self)} (both, mllm, vae, none) must be at least 0 and sum to 1")


@dataclass(frozen=True)
class StageConfig:
    """One of the two stages: each starts a fresh optimizer and warm-up from the parameters that it finds."""

    steps: int
    warmup_steps: int
    """First ones, over which the learning rates grow from 0."""
    cooldown_steps: int
    """Last ones, over which they fall to 0; all, where there are fewer steps."""
    learning_rates: tuple[tuple[str, float | None], ...]
    """(regex of the whole parameter path, peak learning rate): the first that matches. None, or no match: frozen."""
    modes: ModesConfig

    def __post_init__(self) -> None:
        counts = dict(steps=self.steps, warmup_steps=self.warmup_steps, cooldown_steps=self.cooldown_steps)
        if min(counts.values()) < 0:
            said = ", ".join(f"{name}={count}" for name, count in counts.items())
            raise UserError(f"a stage has {said}; use 0 or more")


@dataclass(frozen=True)
class TimeConfig:
    """Where on the way from picture (t = 0) to noise (t = 1) training looks."""

    density: Literal["logit_normal", "shifted_uniform"]
    mean: float
    """Of the logit, logit-normal only; so `std`."""
    std: float


@dataclass(frozen=True)
class TrainConfig:
    """The run."""

    weights: str
    """Checkpoint folder with the frozen weights and the trained ones to start from, "tiny", or "random"."""
    warm_start: bool
    """Whether `weights` "tiny" begins with the DLA of that name's part (`pretrain/dla.py`), not with a random one."""
    start_from: str
    """Workdir or checkpoint folder whose trained parameters replace those of `weights`, or empty."""
    batch_size: int
    accumulate: int
    stage1: StageConfig
    stage2: StageConfig
    time: TimeConfig
    guidance: float
    sample_posterior: bool
    optimizer: Optimizer
    beta1: float
    beta2: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    max_bad_steps: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"config key train.{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"train.batch_size {self.batch_size} is not divisible by train.accumulate {self.accumulate}; "
                f"use a multiple"
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise UserError(f"config key train.ema_decay is {self.ema_decay}; it must be at least 0 (off) and below 1")
        if self.steps < 1:
            raise UserError("config keys train.stage1.steps and train.stage2.steps are both 0; nothing to train")
        for name in ("clip_norm", "max_bad_steps"):
            if getattr(self, name) <= 0:
                raise UserError(f"config key train.{name} is {getattr(self, name)}; it must be above 0")

    @property
    def steps(self) -> int:
        """Of both stages."""
        return self.stage1.steps + self.stage2.steps


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves itself and what it keeps; 0 or empty switches one off."""

    every_steps: int
    every_minutes: float
    grace_seconds: float
    """After SIGTERM, for the save that is then made; what is not written by then is given up."""
    keep_last: int
    keep_every_steps: int
    keep_best: int
    best: str
    """Name of an evaluator's number, the smaller the better unless `best_is` says "max"."""
    best_is: Literal["min", "max"]


@dataclass(frozen=True)
class LogConfig:
    """Where a run is watched."""

    every_steps: int
    tensorboard: bool
    wandb: str
    """Project of Weights & Biases, or empty."""
    profile_start: int
    """Step of this start at which a profile begins; with `profile_steps` 0 none is taken."""
    profile_steps: int

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise UserError(f"config key log.every_steps is {self.every_steps}; it must be at least 1")


@dataclass(frozen=True)
class LossEvalConfig:
    """Loss on held-out examples, with noise and times that never change."""

    every_steps: int
    examples: int


@dataclass(frozen=True)
class SamplesEvalConfig:
    """Pictures of the first held-out examples, always with the same noise."""

    every_steps: int
    count: int
    steps: int
    """Of the sampler; 0 takes the config's."""


@dataclass(frozen=True)
class EvalsConfig:
    """Evaluators during training; `every_steps` 0 switches one off. They run at the end too."""

    source: str
    """As data.source; empty: the same source's test split (toyworld and TFDS)."""
    loss: LossEvalConfig
    samples: SamplesEvalConfig
