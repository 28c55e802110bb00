"""The FLUX transformer. Source: diffusers `FluxTransformer2DModel`; black-forest-labs/flux `src/flux/model.py`.

Two streams share every attention: `txt` (condition tokens) and `img` (noisy tokens, then reference tokens).
Double blocks have separate weights per stream, single blocks apply one set of weights to both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mllmsubj.models.layers import Compute, Dense, RMSNorm, gelu, layer_norm, stack
from mllmsubj.models.lora import LoRAConfig
from mllmsubj.models.modulation import Modulation, Modulator, TimeTextEmbedding
from mllmsubj.ops.attention import attend
from mllmsubj.ops.rope import Rotation, axial_rotation, rotate_interleaved
from mllmsubj.parallel.sharding import constrain
from mllmsubj.typing import Array, Bool, Float

EPS = 1e-6
THETA = 10_000.0
MLP_RATIO = 4

KeyMask = Bool[Array, "b 1 1 m"] | None
"""False at tokens that are masked out of attention."""


@dataclass(frozen=True)
class FluxConfig:
    """Sizes, named as in a diffusers `config.json`."""

    in_channels: int
    """Channels of a token: latent channels × 2 × 2."""
    num_layers: int
    """Number of double blocks."""
    num_single_layers: int
    """Number of single blocks."""
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    """Width of the condition tokens, the input of `context_embedder`."""
    pooled_projection_dim: int
    """Width of the CLIP vector."""
    guidance_embeds: bool
    axes_dims_rope: tuple[int, ...]
    """Channels of a head rotated by each of the three id axes; their sum is `attention_head_dim`."""

    @property
    def width(self) -> int:
        """Width of a token inside the transformer."""
        return self.num_attention_heads * self.attention_head_dim


class FluxTransformer(nn.Module):
    """Network that predicts the flow-matching velocity of packed tokens."""

    config: FluxConfig
    compute: Compute = Compute()
    lora: LoRAConfig | None = None

    def setup(self) -> None:
        """Creates the submodules."""
        config = self.config
        self.x_embedder = Dense(config.width)
        self.context_embedder = Dense(config.width)
        self.time_text_embed = TimeTextEmbedding(config.width, config.guidance_embeds)
        self.modulation = Modulator(config.width, config.num_layers, config.num_single_layers)
        blocks = (config, self.compute, self.lora)
        self.double_blocks = stack(DoubleBlock, config.num_layers, self.compute, per_layer_input=True)(*blocks)
        self.single_blocks = stack(SingleBlock, config.num_single_layers, self.compute, per_layer_input=True)(*blocks)
        self.proj_out = Dense(config.in_channels)

    def __call__(
        self,
        hidden_states: Float[Array, "b n c"],
        encoder_hidden_states: Float[Array, "b s e"],
        pooled_projections: Float[Array, "b p"],
        timestep: Float[Array, " b"] | None,
        img_ids: Float[Array, "n 3"],
        txt_ids: Float[Array, "s 3"],
        guidance: Float[Array, " b"] | None = None,
        mask: Bool[Array, "b m"] | None = None,
        output_tokens: int | None = None,
        modulation: Modulation | None = None,
    ) -> Float[Array, "b o c"]:
        """Returns the velocity of the first `output_tokens` image tokens (all of them by default).

        `timestep` is in [0, 1], 1 is noise; `guidance` is the distilled scale (2.5, not 2500). `mask` [b, s + n],
        condition tokens first, is False at tokens that are not attended to; removing them gives the same velocity.
        `modulation`, from `modulate`, replaces `timestep`, `guidance` and `pooled_projections`, which are then unused.
        """
        config, dtype = self.config, self.compute.dtype
        keys = None if mask is None else mask[:, None, None, :]
        rotation = axial_rotation(jnp.concatenate([txt_ids, img_ids]), config.axes_dims_rope, THETA)
        if modulation is None:
            assert timestep is not None
            modulation = self.modulate(timestep, pooled_projections, guidance)

        img = constrain(self.x_embedder(hidden_states.astype(dtype)), "batch", "seq", "embed")
        txt = constrain(self.context_embedder(encoder_hidden_states.astype(dtype)), "batch", "seq", "embed")
        (img, txt), _ = self.double_blocks((img, txt), modulation.double, (rotation, keys))
        both, _ = self.single_blocks(jnp.concatenate([txt, img], axis=1), modulation.single, (rotation, keys))

        img = both[:, txt.shape[1] :][:, :output_tokens]
        scale, shift = _split_modulation(modulation.out, 2)
        return self.proj_out(layer_norm(img, EPS) * (1 + scale) + shift)

    def modulate(
        self,
        timestep: Float[Array, "*steps b"],
        pooled_projections: Float[Array, "b p"],
        guidance: Float[Array, " b"] | None,
    ) -> Modulation:
        """Returns scales, shifts and gates of every block, for one step or, with leading axes, for many at once.

        A quarter of FLUX's parameters, 3.2 B, serve only this. A sampler's times are fixed in advance, so one product
        gives the modulation of every step and these parameters are read once instead of once per step.
        """
        vec = jax.nn.silu(self.time_text_embed(timestep, guidance, pooled_projections.astype(self.compute.dtype)))
        return self.modulation(vec)

    def example(self) -> tuple[Array | None, ...]:
        """Returns the smallest inputs that use every parameter."""
        c, one, ids = self.config, jnp.ones((1,)), jnp.zeros((1, 3))
        img, txt = jnp.zeros((1, 1, c.in_channels)), jnp.zeros((1, 1, c.joint_attention_dim))
        return img, txt, jnp.zeros((1, c.pooled_projection_dim)), one, ids, ids, one if c.guidance_embeds else None


class DoubleBlock(nn.Module):
    """Joint attention of both streams, then one MLP per stream; each stream has its own weights."""

    config: FluxConfig
    compute: Compute
    lora: LoRAConfig | None

    @nn.compact
    def __call__(
        self,
        streams: tuple[Float[Array, "b n d"], Float[Array, "b s d"]],
        modulation: tuple[Float[Array, "b e"], Float[Array, "b e"]],
        shared: tuple[Rotation, KeyMask],
    ) -> tuple[tuple[Float[Array, "b n d"], Float[Array, "b s d"]], None]:
        """Applies the block to (img, txt)."""
        img, txt = streams
        width = self.config.width
        img_mod, txt_mod = (_split_modulation(part, 6) for part in modulation)

        attention = JointAttention(self.config, self.compute, self.lora, name="attn")
        img_out, txt_out = attention(_modulated_norm(img, *img_mod[:2]), _modulated_norm(txt, *txt_mod[:2]), *shared)
        img, txt = img + img_mod[2] * img_out, txt + txt_mod[2] * txt_out

        img += img_mod[5] * FeedForward(width, name="ff")(_modulated_norm(img, *img_mod[3:5]))
        txt += txt_mod[5] * FeedForward(width, name="ff_context")(_modulated_norm(txt, *txt_mod[3:5]))
        return (constrain(img, "batch", "seq", "embed"), constrain(txt, "batch", "seq", "embed")), None


class JointAttention(nn.Module):
    """Attention over the tokens of both streams, whose projections are separate."""

    config: FluxConfig
    compute: Compute
    lora: LoRAConfig | None

    @nn.compact
    def __call__(
        self,
        img: Float[Array, "b n d"],
        txt: Float[Array, "b s d"],
        rotation: Rotation,
        keys: KeyMask,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b s d"]]:
        """Returns the outputs for img and txt."""
        to_heads, from_heads = _heads(self.config, self.lora)
        q, k, v = (to_heads(name=f"to_{part}")(img) for part in "qkv")
        txt_q, txt_k, txt_v = (to_heads(name=f"add_{part}_proj")(txt) for part in "qkv")
        q, k = RMSNorm(EPS, name="norm_q")(q), RMSNorm(EPS, name="norm_k")(k)
        txt_q, txt_k = RMSNorm(EPS, name="norm_added_q")(txt_q), RMSNorm(EPS, name="norm_added_k")(txt_k)
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in ((txt_q, q), (txt_k, k), (txt_v, v)))
        out = _rotated_attention(q, k, v, rotation, keys, self.compute)
        img, txt = out[:, txt.shape[1] :], out[:, : txt.shape[1]]
        return from_heads(name="to_out")(img), from_heads(name="to_add_out")(txt)


class SingleBlock(nn.Module):
    """Parallel attention and MLP over both streams, with one output projection."""

    config: FluxConfig
    compute: Compute
    lora: LoRAConfig | None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m d"],
        modulation: Float[Array, "b f"],
        shared: tuple[Rotation, KeyMask],
    ) -> tuple[Float[Array, "b m d"], None]:
        """Applies the block to the concatenated streams, txt first."""
        width = self.config.width
        shift, scale, gate = _split_modulation(modulation, 3)
        h = _modulated_norm(x, shift, scale)
        to_heads, from_heads = _heads(self.config, self.lora)
        q, k, v = (to_heads(name=f"to_{part}")(h) for part in "qkv")
        q, k = RMSNorm(EPS, name="norm_q")(q), RMSNorm(EPS, name="norm_k")(k)
        attended = _rotated_attention(q, k, v, *shared, self.compute)
        hidden: Array = gelu(Dense(MLP_RATIO * width, lora=self.lora, name="proj_mlp")(h))
        hidden = constrain(hidden, "batch", "seq", "hidden")
        out = from_heads(name="proj_out")(attended, hidden)
        return constrain(x + gate * out, "batch", "seq", "embed"), None


class FeedForward(nn.Module):
    """Linear, tanh-approximated GELU, linear."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Applies the MLP to each token."""
        hidden = gelu(Dense(MLP_RATIO * self.width, name="ff_in")(x))
        return Dense(self.width, name="ff_out")(constrain(hidden, "batch", "seq", "hidden"))


def _split_modulation(modulation: Array, count: int) -> list[jax.Array]:
    """Splits [b, count·d] into `count` arrays [b, 1, d] that broadcast over tokens."""
    return jnp.split(modulation[:, None, :], count, axis=-1)


def _modulated_norm(x: Array, shift: Array, scale: Array) -> Array:
    return layer_norm(x, EPS) * (1 + scale) + shift


def _heads(config: FluxConfig, lora: LoRAConfig | None) -> tuple[Callable[..., Dense], Callable[..., Dense]]:
    """Returns constructors of the projections to heads and back."""
    dense = partial(Dense, config.width, lora=lora)
    return partial(dense, head_dim=config.attention_head_dim), partial(dense, reads_heads=True)


def _rotated_attention(q: Array, k: Array, v: Array, rotation: Rotation, keys: Array | None, compute: Compute) -> Array:
    q, k = rotate_interleaved(q, rotation), rotate_interleaved(k, rotation)
    q, k, v = (constrain(x, "batch", "seq", "heads", "embed") for x in (q, k, v))
    return attend(q, k, v, keys, implementation=compute.attention)
