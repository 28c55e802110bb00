"""Modulation of FLUX's blocks: shifts, scales and gates from time, guidance and the pooled prompt.

Source: diffusers `CombinedTimestepGuidanceTextProjEmbeddings` and the linear layers of its `AdaLayerNorm…`. These
are stacked over layers here, so that a sampler can compute the modulation of all steps at once.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from mllmsubj.models.layers import Dense, parameter, scaled
from mllmsubj.typing import Array, Float, Leaf

FREQUENCIES = 256
"""Width of the sinusoidal embedding of timestep and guidance."""


@flax.struct.dataclass
class Modulation:
    """Shifts, scales and gates of all blocks at one time, or at several times with leading axes of steps."""

    double: tuple[Leaf, Leaf]
    """[*steps, layers, b, 6·d] for each stream: img, txt."""
    single: Leaf
    """[*steps, layers, b, 3·d]."""
    out: Leaf
    """[*steps, b, 2·d]: scale and shift before the last projection."""


class TimeTextEmbedding(nn.Module):
    """Embedding of timestep, guidance and the pooled prompt in one vector."""

    width: int
    guidance_embeds: bool

    @nn.compact
    def __call__(
        self, timestep: Float[Array, "*steps b"], guidance: Float[Array, " b"] | None, pooled: Float[Array, "b p"]
    ) -> Float[Array, "*steps b d"]:
        """Returns the vector; raises ValueError if `guidance` is needed and None."""
        width, dtype = self.width, pooled.dtype
        vec = TwoLayer(width, name="timestep_embedder")(sinusoid(timestep).astype(dtype))
        vec += TwoLayer(width, name="text_embedder")(pooled)
        if self.guidance_embeds:
            if guidance is None:
                raise ValueError("this transformer embeds guidance: pass `guidance` [b]")
            vec += TwoLayer(width, name="guidance_embedder")(sinusoid(guidance).astype(dtype))
        return vec


class Modulator(nn.Module):
    """Projections of SiLU(`TimeTextEmbedding`) to the modulation of every block, stacked over layers."""

    width: int
    num_layers: int
    num_single_layers: int

    @nn.compact
    def __call__(self, vec: Float[Array, "*steps b d"]) -> Modulation:
        """Returns the modulation for one vector or, with leading axes, for many."""
        img, txt = (
            LayerwiseDense(self.num_layers, 6 * self.width, name=name)(vec) for name in ("double_img", "double_txt")
        )
        single = LayerwiseDense(self.num_single_layers, 3 * self.width, name="single")(vec)
        return Modulation((img, txt), single, Dense(2 * self.width, name="out")(vec))


class LayerwiseDense(nn.Module):
    """One projection of the same input per layer, as one product; `kernel` [in, layers, out]."""

    layers: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*steps b d"]) -> Float[Array, "*steps l b e"]:
        """Returns the projections of all layers."""
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=2, batch_axis=(1,))
        kernel = parameter(self, "kernel", init, (x.shape[-1], self.layers, self.features)).astype(x.dtype)
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (self.layers, self.features)).astype(x.dtype)
        return jnp.moveaxis(scaled(self, jnp.einsum("...bd,dle->...ble", x, kernel)) + bias, -2, -3)


class TwoLayer(nn.Module):
    """Linear, SiLU, linear."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b p"]) -> Float[Array, "*b d"]:
        """Applies the MLP."""
        return Dense(self.width, name="linear_2")(jax.nn.silu(Dense(self.width, name="linear_1")(x)))


def sinusoid(t: Float[Array, "*b"]) -> Float[Array, "*b f"]:
    """Returns cos and sin of 1000·t at 128 frequencies, float32.

    Source: diffusers `get_timestep_embedding` with cos and sin flipped.
    """
    half = FREQUENCIES // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = 1000.0 * t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
