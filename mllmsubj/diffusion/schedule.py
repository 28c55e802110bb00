"""Time grid of a sampler, from t = 1 (noise) to t = 0 (image)."""

import math
from dataclasses import dataclass

import numpy as np

PAPER_SIDE = 512
"""Side in pixels of the paper's images, for which its τ1 and τ2 are given."""


@dataclass(frozen=True)
class ShiftConfig:
    """FLUX's timestep shift; the more tokens an image has, the more steps are near noise."""

    base_tokens: int = 256
    """Number of tokens of an image whose shift is `base_shift`."""
    max_tokens: int = 4096
    """Number of tokens of an image whose shift is `max_shift`."""
    base_shift: float = 0.5
    max_shift: float = 1.15


def shift_exponent(tokens: int, shift: ShiftConfig) -> float:
    """Returns mu for an image of `tokens` tokens, by linear interpolation between the points of `shift`.

    Source: diffusers `pipeline_flux.calculate_shift`.
    """
    slope = (shift.max_shift - shift.base_shift) / (shift.max_tokens - shift.base_tokens)
    return shift.base_shift + slope * (tokens - shift.base_tokens)


def time_grid(steps: int, tokens: int, shift: ShiftConfig) -> np.ndarray:
    """Returns `steps + 1` float64 times from 1 to 0, evenly spaced, then t ← 1 / (1 + (1/t − 1) / e^mu).

    Source: diffusers `FluxPipeline.__call__` and `FlowMatchEulerDiscreteScheduler.time_shift`.
    """
    even = np.linspace(1.0, 1.0 / steps, steps)
    scale = math.exp(shift_exponent(tokens, shift))
    return np.append(1.0 / (1.0 + (1.0 / even - 1.0) / scale), 0.0)


def equivalent_timestep(t: float, height: int, width: int) -> float:
    """Returns the time at which an image of `height` × `width` pixels is as uncertain as one of 512 × 512 is at `t`.

    At the same noise level, an image of fewer pixels is more uncertain.
    Source: Stable Diffusion 3 (arXiv 2403.03206), Eq. 23.
    """
    ratio = math.sqrt(height * width) / PAPER_SIDE
    return ratio * t / (1.0 + (ratio - 1.0) * t)
