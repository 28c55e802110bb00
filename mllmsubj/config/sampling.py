"""Config section `sampling`: every key with its type, default and unit."""

import math
from dataclasses import dataclass

import numpy as np

from mllmsubj.diffusion.stages import Conditions, LastStage, Stage, plan_stages
from mllmsubj.diffusion.steppers import Name
from mllmsubj.errors import ConfigError
from mllmsubj.ops.patchify import TOKEN_PIXELS

MAX_SIDE = 4096


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of sampling; raises UserError for values out of range."""

    height: int = 512
    """Height of images in pixels, a multiple of 16."""
    width: int = 512
    """Width of images in pixels, a multiple of 16."""
    steps: int = 28
    """Number of sampling steps."""
    tau1: float = 0.95
    """Steps with t >= tau1 use MLLM tokens alone; t = 1 is noise, t = 0 the image, after the shift."""
    tau2: float = 0.85
    """Steps with tau2 <= t < tau1 use MLLM and VAE tokens; later steps are those of `last_stage`."""
    last_stage: LastStage = "drop_all"
    """Tokens of the last stage: "drop_all": VAE tokens alone; "keep_text": also the MLLM's text tokens."""
    conditions: Conditions = "staged"
    """"staged": by tau1 and tau2; "both", "mllm" or "vae": the same tokens at every step."""
    guidance: float = 2.5
    """Value of the distilled guidance embedding."""
    text_guidance: float = 1.0
    """Scale of classifier-free guidance on MLLM tokens; 1: off."""
    reference_guidance: float = 1.0
    """Scale of classifier-free guidance on VAE tokens; 1: off."""
    stepper: Name = "euler"
    """Sampler step: "euler", or "dpmpp_2m" for DPM-Solver++(2M), second order with the same number of evaluations."""
    batch_size: int = 4
    """Number of images that are denoised together."""

    def __post_init__(self) -> None:
        """Raises ConfigError for values out of range."""
        for name in ("height", "width"):
            value = getattr(self, name)
            if value % TOKEN_PIXELS or not TOKEN_PIXELS <= value <= MAX_SIDE:
                near = min(max(round(value / TOKEN_PIXELS), 1) * TOKEN_PIXELS, MAX_SIDE)
                raise ConfigError(
                    f"{name} is {value}; it must be a multiple of {TOKEN_PIXELS} up to {MAX_SIDE}, such as {near}"
                )
        for name, low, high in (("steps", 1, 1000), ("batch_size", 1, 1024)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from {low} to {high}")
        for name in ("guidance", "text_guidance", "reference_guidance"):
            if not (math.isfinite(getattr(self, name)) and 0 <= getattr(self, name) <= 100):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from 0 to 100")
        if not 0.0 <= self.tau2 <= self.tau1 <= 1.0:
            taus = f"tau1={self.tau1:g}, tau2={self.tau2:g}"
            raise ConfigError(f"{taus}: they must satisfy 0 <= tau2 <= tau1 <= 1 (the paper: 0.95, 0.85)")

    def stages(self, times: np.ndarray) -> tuple[Stage, ...]:
        """Returns the stages of the timesteps; see `plan_stages`."""
        return plan_stages(times, self.tau1, self.tau2, self.last_stage, self.conditions)

    @property
    def uses_cfg(self) -> bool:
        """Whether classifier-free guidance combines several evaluations; scales of 1 need only one."""
        return (self.text_guidance, self.reference_guidance) != (1.0, 1.0)

    @property
    def all_guidance(self) -> str:
        """All guidance scales as text, for reports."""
        cfg = f", classifier-free guidance {self.text_guidance:g} (text), {self.reference_guidance:g} (reference)"
        return f"guidance {self.guidance:g}{cfg if self.uses_cfg else ''}"
