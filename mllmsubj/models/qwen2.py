"""The Qwen2 decoder over a whole sequence, without a cache. Source: transformers `Qwen2Model`."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from mllmsubj.models.layers import Compute, Dense, RMSNorm, stack, swiglu
from mllmsubj.ops.attention import attend
from mllmsubj.ops.rope import Rotation, rotate_halves, rotation
from mllmsubj.parallel.sharding import constrain
from mllmsubj.typing import Array, Bool, Float, Int


@dataclass(frozen=True)
class Qwen2Config:
    """Sizes, named as in `text_config` of a transformers `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    """Each is shared by `num_attention_heads / num_key_value_heads` neighboring query heads."""
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    """Longest sequence, in tokens. Up to this length "dynamic" RoPE scaling changes nothing."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


class Qwen2Decoder(nn.Module):
    """Hidden states of every layer from embeddings; `embed` is the token embedding."""

    config: Qwen2Config
    compute: Compute = Compute()

    def setup(self) -> None:
        """Creates the submodules."""
        config, initial = self.config, nn.initializers.normal(0.02)
        self.embed_tokens = nn.Embed(
            config.vocab_size, config.hidden_size, dtype=self.compute.dtype, embedding_init=initial
        )
        self.layers = stack(DecoderLayer, config.num_hidden_layers, self.compute)(config, self.compute)
        self.norm = RMSNorm(config.rms_norm_eps)

    def __call__(
        self, inputs_embeds: Float[Array, "b s d"], attention_mask: Int[Array, "b s"] | Bool[Array, "b s"]
    ) -> Float[Array, "states b s d"]:
        """Returns `inputs_embeds` as element 0, the output of layer i as element i, the last one after the final norm.

        Attention is causal and limited to tokens where `attention_mask` is nonzero; positions count from 0 whatever
        the padding, and states at padding are finite but meaningless. Raises ValueError if the sequence is longer
        than `max_position_embeddings`.
        """
        config, length = self.config, inputs_embeds.shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(
                f"sequence of {length} tokens, max_position_embeddings is {config.max_position_embeddings}"
            )
        rotary = rotation(jnp.arange(length), config.head_dim, config.rope_theta)
        keys = jnp.asarray(attention_mask).astype(bool)[:, None, None, :]
        x = constrain(jnp.asarray(inputs_embeds, self.compute.dtype), "batch", "seq", "embed")
        last, layer_inputs = self.layers(x, rotary, keys)
        if self.is_initializing():
            self.embed(jnp.zeros((1, 1), jnp.int32))
        return jnp.concatenate([layer_inputs, self.norm(last)[None]])

    def embed(self, input_ids: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """Returns rows of the token embedding."""
        return self.embed_tokens(input_ids)

    def unembed(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s vocab"]:
        """Returns logits by the token embedding, for models whose output head is tied to it."""
        return self.embed_tokens.attend(hidden)

    def example(self) -> tuple[Array, ...]:
        """Returns the smallest inputs that use every parameter."""
        return jnp.zeros((1, 1, self.config.hidden_size)), jnp.ones((1, 1), jnp.int32)


class DecoderLayer(nn.Module):
    """Pre-norm causal attention and gated MLP; also returns its input, which the stack collects."""

    config: Qwen2Config
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "b s d"], rotary: Rotation, keys: Bool[Array, "b 1 1 s"]
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s d"]]:
        """Returns the output and the input."""
        config, layer_inputs = self.config, x
        attention = DecoderAttention(config, self.compute, name="attn")
        x = x + attention(RMSNorm(config.rms_norm_eps, name="input_layernorm")(x), rotary, keys)
        x = x + GatedMLP(config, name="mlp")(RMSNorm(config.rms_norm_eps, name="post_attention_layernorm")(x))
        return constrain(x, "batch", "seq", "embed"), layer_inputs


class DecoderAttention(nn.Module):
    """Grouped-query attention with rotary positions; queries, keys and values have a bias, the output has none."""

    config: Qwen2Config
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "b s d"], rotary: Rotation, keys: Bool[Array, "b 1 1 s"]
    ) -> Float[Array, "b s d"]:
        """Applies attention; `keys` is True at tokens that may be attended to."""
        config = self.config

        def heads(name: str, count: int) -> Array:
            y = rearrange(Dense(count * config.head_dim, name=name)(x), "b s (h k) -> b s h k", h=count)
            return constrain(y, "batch", "seq", "heads", "embed")

        q = rotate_halves(heads("q_proj", config.num_attention_heads), rotary)
        k = rotate_halves(heads("k_proj", config.num_key_value_heads), rotary)
        v = heads("v_proj", config.num_key_value_heads)
        out = attend(q, k, v, keys, causal=True, implementation=self.compute.attention)
        return Dense(config.hidden_size, use_bias=False, name="o_proj")(rearrange(out, "b s h k -> b s (h k)"))


class GatedMLP(nn.Module):
    """SwiGLU, down(SiLU(gate x) · up x), without biases."""

    config: Qwen2Config

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Applies the MLP to each token."""
        gate, up = (
            Dense(self.config.intermediate_size, use_bias=False, name=f"{part}_proj")(x) for part in ("gate", "up")
        )
        hidden = constrain(swiglu(gate, up), "batch", "seq", "hidden")
        return Dense(self.config.hidden_size, use_bias=False, name="down_proj")(hidden)
