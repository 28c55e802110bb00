"""Config sections `train`, `checkpoint`, `log` and `evals`: every key with its type, default and unit."""

import math
from dataclasses import astuple, dataclass
from typing import Literal

from mllmsubj.errors import ConfigError

Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class ModesConfig:
    """How often an example is trained with which condition; the four sum to 1. Each is one that the sampler uses."""

    both: float = 0.0
    mllm: float = 0.9
    vae: float = 0.0
    none: float = 0.1

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0 or not math.isclose(sum(astuple(self)), 1.0, abs_tol=1e-6):
            raise ConfigError(
                f"condition modes {astuple(self)} (both, mllm, vae, none) must be at least 0 and sum to 1"
            )


@dataclass(frozen=True)
class StageConfig:
    """One of the two stages: each starts a fresh optimizer and warm-up from the parameters that it finds."""

    steps: int = 0
    """Updates."""
    warmup_steps: int = 500
    """First updates, over which learning rates grow from 0."""
    decay_steps: int = 0
    """Last updates, over which learning rates fall to 0; all, if the stage is shorter."""
    learning_rates: tuple[tuple[str, float | None], ...] = (("dla/.*", 1e-4), (".*/lora_[ab]", 5e-5))
    """Pairs (regex of the whole parameter path, peak learning rate); the first match counts; None: frozen."""
    modes: ModesConfig = ModesConfig()

    def __post_init__(self) -> None:
        counts = dict(steps=self.steps, warmup_steps=self.warmup_steps, decay_steps=self.decay_steps)
        if min(counts.values()) < 0:
            said = ", ".join(f"{name}={count}" for name, count in counts.items())
            raise ConfigError(f"a stage has {said}; use 0 or more")


@dataclass(frozen=True)
class TimeConfig:
    """Where on the way from picture (t = 0) to noise (t = 1) training looks."""

    density: Literal["logit_normal", "shifted_uniform"] = "logit_normal"
    """Of t; "shifted_uniform" is shifted by the number of tokens, as in sampling."""
    mean: float = 0.0
    """Of the logit of t, "logit_normal" only."""
    std: float = 1.0
    """Of the logit of t, "logit_normal" only."""


@dataclass(frozen=True)
class TrainConfig:
    """The run."""

    weights: str = ""
    """Checkpoint folder of the frozen weights and of the trained ones to start from, "tiny", or "random"."""
    warm_start: bool = False
    """Whether `weights` "tiny" starts with its pretrained DLA, not a random one."""
    start_from: str = ""
    """Workdir or checkpoint folder whose trained parameters replace those of `weights`; "": none."""
    batch_size: int = 64
    """Examples of an update, over all devices."""
    grad_accum_steps: int = 1
    """Parts of a batch whose gradients are summed before the update."""
    stage1: StageConfig = StageConfig(steps=25_000)
    """MLLM tokens alone."""
    stage2: StageConfig = StageConfig(steps=10_000, modes=ModesConfig(both=0.6, mllm=0.15, vae=0.15, none=0.1))
    """MLLM and VAE tokens."""
    time: TimeConfig = TimeConfig()
    guidance: float = 1.0
    """Value of the guidance embedding in training."""
    sample_posterior: bool = True
    """Whether target latents are sampled from the VAE's posterior; False takes its mean."""
    optimizer: Optimizer = "adamw"
    """"muon": Muon for matrices inside the network, AdamW for all else."""
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    """Of matrices."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""
    ema_decay: float = 0.999
    """Of the running mean of the trained parameters; 0: none."""
    max_nonfinite_steps: int = 10
    """Consecutive updates with NaN or Inf, each left out, at which training stops."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "grad_accum_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config key train.{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % self.grad_accum_steps:
            raise ConfigError(
                f"train.batch_size {self.batch_size} is not divisible by train.grad_accum_steps "
                f"{self.grad_accum_steps}; use a multiple"
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(
                f"config key train.ema_decay is {self.ema_decay}; it must be at least 0 (off) and below 1"
            )
        if self.steps < 1:
            raise ConfigError("config keys train.stage1.steps and train.stage2.steps are both 0; nothing to train")
        for name in ("clip_norm", "max_nonfinite_steps"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"config key train.{name} is {getattr(self, name)}; it must be above 0")

    @property
    def steps(self) -> int:
        """Of both stages."""
        return self.stage1.steps + self.stage2.steps


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves itself and what it keeps; 0 or empty switches one off."""

    every_steps: int = 1000
    """0: off."""
    every_minutes: float = 15.0
    """0: off."""
    grace_seconds: float = 120.0
    """After SIGTERM, for the save that is then made; what is not written by then is given up."""
    keep_last: int = 2
    """Newest saves that are kept."""
    keep_every_steps: int = 5000
    """Saves at multiples of this are kept for good; 0: none."""
    keep_best: int = 0
    """Number of saves with the best `best` that are kept, too."""
    best: str = "loss/all"
    """Name of an evaluator's number."""
    best_is: Literal["min", "max"] = "min"


@dataclass(frozen=True)
class LogConfig:
    """Where a run is watched."""

    every_steps: int = 50
    """Updates between two log points."""
    tensorboard: bool = True
    """Whether event files for TensorBoard are written."""
    wandb: str = ""
    """Project of Weights & Biases, or empty."""
    profile_start: int = 10
    """Update of this start at which a profile begins."""
    profile_steps: int = 0
    """Updates that are profiled; 0: no profile."""

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise ConfigError(f"config key log.every_steps is {self.every_steps}; it must be at least 1")


@dataclass(frozen=True)
class LossEvalConfig:
    """Loss on held-out examples, with noise and times that never change."""

    every_steps: int = 1000
    """0: off."""
    examples: int = 256


@dataclass(frozen=True)
class SamplesEvalConfig:
    """Pictures of the first held-out examples, always with the same noise."""

    every_steps: int = 2500
    """0: off."""
    count: int = 4
    """Images."""
    steps: int = 0
    """Of the sampler; 0: as in `sampling`."""


@dataclass(frozen=True)
class EvalsConfig:
    """Evaluators during training; `every_steps` 0 switches one off. They run at the end too."""

    source: str = ""
    """As data.source; "": the test split of the same source (registered sources and TFDS)."""
    loss: LossEvalConfig = LossEvalConfig()
    samples: SamplesEvalConfig = SamplesEvalConfig()
