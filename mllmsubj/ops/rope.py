"""Rotary position embeddings: FLUX's (interleaved pairs, several axes) and Qwen2's (split halves, one axis)."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mllmsubj.parallel.target import platform
from mllmsubj.typing import Array, Float, Int

Rotation = tuple[Float[Array, "*s k2"], Float[Array, "*s k2"]]
"""Tuple of cos and sin of one angle per position and pair of channels, float32."""


def axial_rotation(ids: Float[Array, "s a"] | Int[Array, "s a"], axes_dim: tuple[int, ...], theta: float) -> Rotation:
    """Returns the rotation of FLUX's position ids, whose axis i rotates `axes_dim[i] // 2` pairs of channels.

    Source: black-forest-labs/flux `src/flux/math.py` (`rope`), diffusers `FluxPosEmbed`.
    """
    angles = [ids[:, axis, None].astype(jnp.float32) * _frequencies(dim, theta) for axis, dim in enumerate(axes_dim)]
    angle = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotation(positions: Int[Array, " s"], dim: int, theta: float) -> Rotation:
    """Returns the rotation of a sequence, `dim // 2` pairs of channels. Source: transformers `Qwen2RotaryEmbedding`."""
    angle = positions[:, None].astype(jnp.float32) * _frequencies(dim, theta)
    return jnp.cos(angle), jnp.sin(angle)


def rotate_interleaved(x: Float[Array, "b s h k"], by: Rotation) -> Float[Array, "b s h k"]:
    """Rotates channel pairs (0, 1), (2, 3), … of every head, in float32."""
    if platform() == "tpu":
        return _rotate_by_permutation(x, by)
    pairs = rearrange(x.astype(jnp.float32), "b s h (k two) -> two b s h k", two=2)
    rotated = jnp.stack(_rotate(pairs[0], pairs[1], by), axis=-1)
    return rearrange(rotated, "b s h k two -> b s h (k two)").astype(x.dtype)


def _rotate_by_permutation(x: Float[Array, "b s h k"], by: Rotation) -> Float[Array, "b s h k"]:
    """Returns x · cos + swapped(x) · ±sin, without an axis of size two, which a TPU would pad to 128 lanes and copy.

    The channels of a pair are swapped by a product with a permutation matrix, which is exact in any dtype and cheap
    on a matrix unit.
    """
    size = x.shape[-1]
    swap = jnp.asarray(np.eye(size)[np.arange(size) ^ 1], x.dtype)
    swapped = jnp.einsum("bshk,kj->bshj", x, swap, precision="highest")
    cos, sin = (jnp.repeat(part, 2, axis=-1)[:, None, :] for part in by)
    sin *= np.where(np.arange(size) % 2, 1.0, -1.0).astype(np.float32)
    return (x.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin).astype(x.dtype)


def rotate_halves(x: Float[Array, "b s h k"], by: Rotation) -> Float[Array, "b s h k"]:
    """Rotates channel pairs (0, k/2), (1, k/2 + 1), … of every head, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(_rotate(first, second, by), axis=-1).astype(x.dtype)


def _rotate(first: Array, second: Array, by: Rotation) -> tuple[Array, Array]:
    cos, sin = (part[:, None, :] for part in by)
    return first * cos - second * sin, first * sin + second * cos


def _frequencies(dim: int, theta: float) -> np.ndarray:
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)).astype(np.float32)
