"""InternViT, the vision tower of InternVL. Source: transformers `InternVLVisionModel`."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mllmsubj.models.layers import Compute, Dense, LayerNorm, RMSNorm, parameter, stack
from mllmsubj.ops.attention import attend
from mllmsubj.parallel.sharding import constrain
from mllmsubj.typing import Array, Float

QK_EPS = 1e-6
NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}
INITIAL = nn.initializers.normal(0.02)


@dataclass(frozen=True)
class ViTConfig:
    """Sizes, named as in `vision_config` of a transformers `config.json`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    """Side of a square tile, in pixels."""
    patch_size: int
    """Side of a square patch, in pixels."""
    num_channels: int
    attention_bias: bool
    """Whether queries, keys and values have a bias; the output projection always has one."""
    use_qk_norm: bool
    """Whether queries and keys get an RMS norm, over all heads together."""
    norm_type: str
    """Norm before attention and MLP, "layer_norm" or "rms_norm"."""
    layer_norm_eps: float
    """Epsilon of either kind of norm."""
    layer_scale_init_value: float

    @property
    def grid(self) -> int:
        """Number of patches along a side."""
        return self.image_size // self.patch_size


class InternViT(nn.Module):
    """Vision transformer over image tiles, without a final norm."""

    config: ViTConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, pixel_values: Float[Array, "t height width c"]) -> Float[Array, "t n d"]:
        """Returns the hidden states of the last block: the class token, then patches row by row.

        `pixel_values` are normalized as by the checkpoint's processor. Raises ValueError if a tile is not
        `image_size` square (position embeddings are not interpolated).
        """
        config, dtype = self.config, self.compute.dtype
        size = (config.image_size, config.image_size, config.num_channels)
        if pixel_values.shape[1:] != size:
            raise ValueError(f"tiles are {pixel_values.shape[1:]}, this vision tower takes {size}: resize them")
        width, patch = config.hidden_size, (config.patch_size, config.patch_size)
        embed = nn.Conv(width, patch, strides=patch, padding="VALID", dtype=dtype, name="patch_embedding")
        patches = rearrange(embed(pixel_values.astype(dtype)), "t y x d -> t (y x) d")

        class_token = parameter(self, "class_token", INITIAL, (1, 1, width)).astype(dtype)
        position = parameter(self, "position_embedding", INITIAL, (1, config.grid**2 + 1, width)).astype(dtype)
        first = jnp.broadcast_to(class_token, (len(patches), 1, width))
        tokens = constrain(jnp.concatenate([first, patches], axis=1) + position, "batch", "seq", "embed")
        tokens, _ = stack(ViTBlock, config.num_hidden_layers, self.compute)(config, self.compute, name="layers")(tokens)
        return tokens

    def example(self) -> tuple[Array, ...]:
        """Returns the smallest inputs that use every parameter."""
        return (jnp.zeros((1, self.config.image_size, self.config.image_size, self.config.num_channels)),)


class ViTBlock(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel before it is added."""

    config: ViTConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "t n d"]) -> tuple[Float[Array, "t n d"], None]:
        """Applies the block."""
        config = self.config
        norm = NORMS[config.norm_type]
        attended = ViTAttention(config, self.compute, name="attn")(norm(config.layer_norm_eps, name="norm1")(x))
        x += self._layer_scale("layer_scale_1", x) * attended
        hidden = ViTMLP(config, name="mlp")(norm(config.layer_norm_eps, name="norm2")(x))
        x += self._layer_scale("layer_scale_2", x) * hidden
        return constrain(x, "batch", "seq", "embed"), None

    def _layer_scale(self, name: str, x: Array) -> Array:
        initial = nn.initializers.constant(self.config.layer_scale_init_value)
        return parameter(self, name, initial, (x.shape[-1],)).astype(x.dtype)


class ViTAttention(nn.Module):
    """Bidirectional attention within each tile."""

    config: ViTConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "t n d"]) -> Float[Array, "t n d"]:
        """Applies attention."""
        config = self.config
        q, k, v = (Dense(config.hidden_size, config.attention_bias, name=f"{part}_proj")(x) for part in "qkv")
        if config.use_qk_norm:
            q, k = RMSNorm(QK_EPS, name="q_norm")(q), RMSNorm(QK_EPS, name="k_norm")(k)
        q, k, v = (rearrange(y, "t n (h k) -> t n h k", h=config.num_attention_heads) for y in (q, k, v))
        q, k, v = (constrain(y, "batch", "seq", "heads", "embed") for y in (q, k, v))
        out = attend(q, k, v, implementation=self.compute.attention)
        return Dense(config.hidden_size, name="proj")(rearrange(out, "t n h k -> t n (h k)"))


class ViTMLP(nn.Module):
    """Linear, GELU, linear."""

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "t n d"]) -> Float[Array, "t n d"]:
        """Applies the MLP to each token."""
        hidden = jax.nn.gelu(Dense(self.config.intermediate_size, name="fc1")(x), approximate=False)
        return Dense(self.config.hidden_size, name="fc2")(constrain(hidden, "batch", "seq", "hidden"))
