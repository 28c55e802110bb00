"""Config sections `train`, `checkpoint`, `log` and `evals`: every key with its type, default and unit."""

import math
from dataclasses import astuple, dataclass
from typing import Literal

from mllmsubj.errors import ConfigError

Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class ModesConfig:
    """Fractions of examples trained with each condition mode; they sum to 1. Sampling uses the same modes."""

    both: float = 0.0
    mllm: float = 0.9
    vae: float = 0.0
    none: float = 0.1

    def __post_init__(self) -> None:
        """Raises ConfigError if a fraction is negative or their sum is not 1."""
        if min(astuple(self)) < 0 or not math.isclose(sum(astuple(self)), 1.0, abs_tol=1e-6):
            raise ConfigError(
                f"condition modes {astuple(self)} (both, mllm, vae, none) must be at least 0 and sum to 1"
            )


@dataclass(frozen=True)
class StageConfig:
    """One of the two training stages; each starts a new optimizer and warm-up from the current parameters."""

    steps: int = 0
    """Number of updates."""
    warmup_steps: int = 500
    """Number of first updates, over which learning rates grow from 0."""
    decay_steps: int = 0
    """Number of last updates, over which learning rates fall to 0; all updates if the stage is shorter."""
    learning_rates: tuple[tuple[str, float | None], ...] = (("dla/.*", 1e-4), (".*/lora_[ab]", 5e-5))
    """Pairs (regex of the whole parameter path, peak learning rate); the first match applies; None: frozen."""
    modes: ModesConfig = ModesConfig()

    def __post_init__(self) -> None:
        """Raises ConfigError for negative counts."""
        counts = dict(steps=self.steps, warmup_steps=self.warmup_steps, decay_steps=self.decay_steps)
        if min(counts.values()) < 0:
            said = ", ".join(f"{name}={count}" for name, count in counts.items())
            raise ConfigError(f"a stage has {said}; use 0 or more")


@dataclass(frozen=True)
class TimeConfig:
    """Distribution of the timesteps t in training, from image (t = 0) to noise (t = 1)."""

    density: Literal["logit_normal", "shifted_uniform"] = "logit_normal"
    """Density of t; "shifted_uniform" is shifted by the number of tokens, as in sampling."""
    mean: float = 0.0
    """Mean of the logit of t, "logit_normal" only."""
    std: float = 1.0
    """Standard deviation of the logit of t, "logit_normal" only."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training: weights, batches, stages and optimizer."""

    weights: str = ""
    """Checkpoint folder with the frozen weights and the initial trained ones, "tiny", or "random"."""
    warm_start: bool = False
    """Whether `weights` "tiny" starts with its pretrained DLA, not a random one."""
    start_from: str = ""
    """Workdir or checkpoint folder whose trained parameters replace those of `weights`; "": none."""
    batch_size: int = 64
    """Examples per update, over all devices."""
    grad_accum_steps: int = 1
    """Number of microbatches whose gradients are summed before an update."""
    stage1: StageConfig = StageConfig(steps=25_000)
    """Stage 1: MLLM tokens alone."""
    stage2: StageConfig = StageConfig(steps=10_000, modes=ModesConfig(both=0.6, mllm=0.15, vae=0.15, none=0.1))
    """Stage 2: MLLM and VAE tokens."""
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
    """Weight decay of matrices; other parameters have none."""
    clip_norm: float = 1.0
    """Maximum global norm of the gradient."""
    ema_decay: float = 0.999
    """Decay of the running mean of the trained parameters; 0: no running mean."""
    max_nonfinite_steps: int = 10
    """Number of consecutive updates with NaN or Inf at which training stops; each of them is skipped."""

    def __post_init__(self) -> None:
        """Raises ConfigError for values out of range."""
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
        """Number of updates of both stages."""
        return self.stage1.steps + self.stage2.steps


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves checkpoints, and which of them it keeps."""

    every_steps: int = 1000
    """Updates between saves; 0: off."""
    every_minutes: float = 15.0
    """Minutes between saves; 0: off."""
    grace_seconds: float = 120.0
    """Seconds after SIGTERM for a last save; a save that is not complete by then is abandoned."""
    keep_last: int = 2
    """Number of newest saves that are kept."""
    keep_every_steps: int = 5000
    """Saves at multiples of this number of updates are kept permanently; 0: none."""
    keep_best: int = 0
    """Number of saves with the best value of `best` that are also kept."""
    best: str = "loss/all"
    """Name of a number from an evaluator."""
    best_is: Literal["min", "max"] = "min"
    """Whether the smallest or the largest value of `best` is the best."""


@dataclass(frozen=True)
class LogConfig:
    """Logging and profiling of a run."""

    every_steps: int = 50
    """Updates between two log entries."""
    tensorboard: bool = True
    """Whether event files for TensorBoard are written."""
    wandb: str = ""
    """Project of Weights & Biases; "": none."""
    profile_start: int = 10
    """Number of updates, from each start of the run, after which a profile begins."""
    profile_steps: int = 0
    """Number of updates that are profiled; 0: no profile."""

    def __post_init__(self) -> None:
        """Raises ConfigError if `every_steps` is below 1."""
        if self.every_steps < 1:
            raise ConfigError(f"config key log.every_steps is {self.every_steps}; it must be at least 1")


@dataclass(frozen=True)
class LossEvalConfig:
    """Loss on held-out examples, with fixed noise and timesteps."""

    every_steps: int = 1000
    """Updates between evaluations; 0: off."""
    examples: int = 256
    """Number of examples."""


@dataclass(frozen=True)
class SamplesEvalConfig:
    """Sample images of the first held-out examples, always with the same noise."""

    every_steps: int = 2500
    """Updates between evaluations; 0: off."""
    count: int = 4
    """Number of images."""
    steps: int = 0
    """Number of sampling steps; 0: as in `sampling`."""


@dataclass(frozen=True)
class EvalsConfig:
    """Evaluators that run during and at the end of training; `every_steps` 0 switches one off."""

    source: str = ""
    """Held-out data, as in data.source; "": the test split of data.source (registered sources and TFDS)."""
    loss: LossEvalConfig = LossEvalConfig()
    samples: SamplesEvalConfig = SamplesEvalConfig()
