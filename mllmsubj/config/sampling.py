"""Config section `sampling`: every key with its type, default and unit, checked in one place."""

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
    """Settings of one sampling run; raises UserError for values that are out of range."""

    height: int = 512
    """Pixels, a multiple of 16."""
    width: int = 512
    """Pixels, a multiple of 16."""
    steps: int = 28
    """Steps of the sampler."""
    tau1: float = 0.95
    """MLLM alone while t >= tau1; t = 1 is noise, t = 0 the image, after the shift."""
    tau2: float = 0.85
    """MLLM and VAE while tau2 <= t < tau1, then the VAE alone."""
    last_stage: LastStage = "drop_all"
    """"drop_all": the last stage has the VAE's tokens alone; "keep_text": it keeps the MLLM's text tokens."""
    conditions: Conditions = "staged"
    """"staged", or "both", "mllm", "vae": the same at every step, whatever tau1 and tau2."""
    guidance: float = 2.5
    """Value of the distilled guidance embedding."""
    text_guidance: float = 1.0
    """Scale of classifier-free guidance on the MLLM's tokens; 1: off."""
    reference_guidance: float = 1.0
    """Scale of classifier-free guidance on the VAE's tokens; 1: off."""
    stepper: Name = "euler"
    """"euler", or "dpmpp_2m": DPM-Solver++(2M), of second order, with as many evaluations of the transformer."""
    batch_size: int = 4
    """Images that are denoised together."""

    def __post_init__(self) -> None:
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
        """See `plan_stages`."""
        return plan_stages(times, self.tau1, self.tau2, self.last_stage, self.conditions)

    @property
    def uses_cfg(self) -> bool:
        """Whether the velocity is a mix of several evaluations; scales of 1 are the plain velocity."""
        return (self.text_guidance, self.reference_guidance) != (1.0, 1.0)

    @property
    def all_guidance(self) -> str:
        """All guidance scales in words, for reports."""
        cfg = f", classifier-free guidance {self.text_guidance:g} (text), {self.reference_guidance:g} (reference)"
        return f"guidance {self.guidance:g}{cfg if self.uses_cfg else ''}"
