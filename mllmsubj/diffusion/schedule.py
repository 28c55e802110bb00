"""The time grid of a sampler: t = 1 is noise, t = 0 the picture."""

import math
from dataclasses import dataclass

import numpy as np

PAPER_SIDE = 512
"""Pixels of the paper's pictures, which its τ1 and τ2 are of."""


@dataclass(frozen=True)
class ShiftConfig:
    """FLUX's shift: the more tokens a picture has, the longer its time grid stays near noise."""

    base_tokens: int = 256
    """Tokens of an image whose shift is `base_shift`."""
    max_tokens: int = 4096
    """Tokens of an image whose shift is `max_shift`."""
    base_shift: float = 0.5
    max_shift: float = 1.15


def shift_exponent(tokens: int, shift: ShiftConfig) -> float:
    """mu of a picture of `tokens` tokens, on the line through the two given points.

    Source: diffusers `pipeline_flux.calculate_shift`.
    """
    slope = (shift.max_shift - shift.base_shift) / (shift.max_tokens - shift.base_tokens)
    return shift.base_shift + slope * (tokens - shift.base_tokens)


def time_grid(steps: int, tokens: int, shift: ShiftConfig) -> np.ndarray:
    """`steps + 1` falling times, float64, from 1 to 0: evenly spaced, then t ← 1 / (1 + (1/t − 1) / e^mu).

    Source: diffusers `FluxPipeline.__call__` and `FlowMatchEulerDiscreteScheduler.time_shift`.
    """
    even = np.linspace(1.0, 1.0 / steps, steps)
    scale = math.exp(shift_exponent(tokens, shift))
    return np.append(1.0 / (1.0 + (1.0 / even - 1.0) / scale), 0.0)


def equivalent_timestep(t: float, height: int, width: int) -> float:
    """The time at which a picture of `height` × `width` pixels is as uncertain as the paper's, of 512 × 512, is at `t`.

    The fewer numbers show a picture, the more of it noise hides. Source: Stable Diffusion 3 (arXiv 2403.03206), Eq. 23.
    """
    ratio = math.sqrt(height * width) / PAPER_SIDE
    return ratio * t / (1.0 + (ratio - 1.0) * t)
