"""Conversion between 8-bit pixels and the value range of the VAE, of numpy and JAX arrays alike."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.typing import Array


def from_uint8(pixels: Array) -> Any:
    """[0, 255] of any dtype -> [-1, 1] in float32."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def to_uint8(images: Array) -> Any:
    """[-1, 1] -> [0, 255] in uint8, rounded; values outside are clipped."""
    xp: Any = jnp if isinstance(images, jax.Array) else np
    return xp.rint(xp.clip(images / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
