"""CLIP's text encoder, which maps a prompt to one vector. Source: transformers `CLIPTextModel`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mllmsubj.models.layers import Compute, Dense, LayerNorm, parameter, stack
from mllmsubj.ops.attention import attend
from mllmsubj.parallel.sharding import constrain
from mllmsubj.typing import Array, Float, Int

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": partial(jax.nn.gelu, approximate=False),
}
LEGACY_EOS = 2
"""`eos_token_id` in configs from before a fix in transformers; it is not the id that ends their prompts."""


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes, named as in a transformers `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    """Length of the longest prompt, in tokens."""
    hidden_act: Literal["quick_gelu", "gelu"]
    layer_norm_eps: float
    eos_token_id: int


class CLIPTextModel(nn.Module):
    """Text encoder whose output is the last hidden state at the token that ends the prompt."""

    config: CLIPTextConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, input_ids: Int[Array, "b s"]) -> Float[Array, "b d"]:
        """Returns one vector per prompt.

        `input_ids` contain start, prompt, end and padding; tokens after the end change nothing. Raises ValueError if
        they are longer than `max_position_embeddings`.
        """
        config, length = self.config, input_ids.shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(
                f"input_ids contain {length} tokens, max_position_embeddings is {config.max_position_embeddings}; "
                "truncate the prompt"
            )
        embed = nn.Embed(config.vocab_size, config.hidden_size, dtype=self.compute.dtype, name="token_embedding")
        positions = parameter(
            self,
            "position_embedding",
            nn.initializers.normal(0.01),
            (config.max_position_embeddings, config.hidden_size),
        )
        x = embed(input_ids) + positions[:length].astype(self.compute.dtype)
        x = constrain(x, "batch", "seq", "embed")
        layers = stack(CLIPLayer, config.num_hidden_layers, self.compute)(config, self.compute, name="layers")
        x, _ = layers(x)
        # The norm acts on each token separately, so only the returned one needs it.
        last = x[jnp.arange(len(x)), end_of_prompt(input_ids, config.eos_token_id)]
        return LayerNorm(config.layer_norm_eps, name="final_layer_norm")(last)

    def example(self) -> tuple[Array, ...]:
        """Returns the smallest inputs that use every parameter."""
        return (jnp.zeros((1, 1), jnp.int32),)


class CLIPLayer(nn.Module):
    """Pre-norm causal attention and MLP."""

    config: CLIPTextConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> tuple[Float[Array, "b s d"], None]:
        """Applies the layer."""
        config = self.config
        h = LayerNorm(config.layer_norm_eps, name="layer_norm1")(x)
        x += CausalAttention(config, self.compute, name="self_attn")(h)
        h = LayerNorm(config.layer_norm_eps, name="layer_norm2")(x)
        x += FeedForward(config, name="mlp")(h)
        return constrain(x, "batch", "seq", "embed"), None


class CausalAttention(nn.Module):
    """Causal multi-head attention."""

    config: CLIPTextConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Applies attention."""
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        q, k, v = (rearrange(Dense(width, name=f"{part}_proj")(x), "b s (h k) -> b s h k", h=heads) for part in "qkv")
        q, k, v = (constrain(x, "batch", "seq", "heads", "embed") for x in (q, k, v))
        out = attend(q, k, v, causal=True, implementation=self.compute.attention)
        return Dense(width, name="out_proj")(rearrange(out, "b s h k -> b s (h k)"))


class FeedForward(nn.Module):
    """Linear, activation `hidden_act`, linear."""

    config: CLIPTextConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Applies the MLP to each token."""
        hidden = ACTIVATIONS[self.config.hidden_act](Dense(self.config.intermediate_size, name="fc1")(x))
        return Dense(self.config.hidden_size, name="fc2")(constrain(hidden, "batch", "seq", "hidden"))


def end_of_prompt(input_ids: Int[Array, "b s"], eos_token_id: int) -> Int[Array, " b"]:
    """Returns the position of the first `eos_token_id` (0 if there is none), or of the largest id for `LEGACY_EOS`.

    With `eos_token_id` 7, [5, 3, 7, 7] gives 2; with the legacy 2, so does [5, 3, 9, 0].
    """
    return jnp.argmax(input_ids if eos_token_id == LEGACY_EOS else input_ids == eos_token_id, axis=-1)
