"""The Dual Layer Aggregator, which pools the MLLM's hidden states over layers, token by token.

Two Layerwise Attention Pooling modules (LAP), one for text tokens and one for image tokens, attend across the layer
axis and reduce it; a two-layer connector then projects each result to the width of the DiT's context.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mllmsubj.errors import UserError
from mllmsubj.models.layers import Compute, Dense, RMSNorm, parameter, rms_norm, stack, swiglu
from mllmsubj.ops.attention import attend
from mllmsubj.parallel.sharding import constrain
from mllmsubj.typing import Array, Bool, Float


@dataclass(frozen=True)
class DLAConfig:
    """Sizes of both LAP modules and their connectors."""

    num_states: int
    """Number of hidden states in the input: the MLLM's layers + 1."""
    states: tuple[int, int]
    """Range of states that are pooled, (start, stop), `stop` excluded; the others are unused."""
    shared: bool
    """Whether one LAP and connector, stored as `text`, serve both kinds of tokens, instead of one for each."""
    input_dim: int
    """Width of the MLLM."""
    width: int
    """Width of the LAP blocks; if it differs from `input_dim`, a projection without bias precedes them."""
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    num_blocks: int
    """Number of blocks that attend across layers, per token; 2 in UniFusion."""
    num_refiner_blocks: int
    """Number of bidirectional blocks across tokens after pooling, 0 or 2."""
    norm_states: bool
    """Whether each input state has its own RMS norm, since their scales differ by orders of magnitude."""
    eps: float
    context_dim: int
    """Width of the output tokens: the DiT's `joint_attention_dim`."""

    def __post_init__(self) -> None:
        """Raises UserError for an invalid range of states."""
        start, stop = self.states
        if not 0 <= start < stop <= self.num_states:
            raise UserError(
                f"config key model.dla.states is {self.states}; it must be a range (start, stop) within "
                f"(0, {self.num_states}), the states of the MLLM"
            )

    @property
    def num_pooled(self) -> int:
        """Number of states that are pooled."""
        return self.states[1] - self.states[0]


class DualLayerAggregator(nn.Module):
    """Maps hidden states of text and image tokens from all MLLM layers to context tokens of the DiT, separately.

    Source: "Squeezing Capacity from Multimodal Large Language Models for Subject-driven Generation"
    (arXiv 2605.26111), Dual Layer Aggregator; the connector has the form of UniWorld-V1's (our choice).
    """

    config: DLAConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        """Creates the submodules."""
        self.text = Aggregator(self.config, self.compute)
        self.image = self.text if self.config.shared else Aggregator(self.config, self.compute)

    def __call__(
        self,
        text: Float[Array, "l b s d"],
        image: Float[Array, "l b n d"],
        text_mask: Bool[Array, "b s"] | None = None,
    ) -> tuple[Float[Array, "b s e"], Float[Array, "b n e"]]:
        """Returns text and image tokens; `text_mask`, False at padding, affects only the refiner blocks."""
        return self.text(text, text_mask), self.image(image)

    def aggregate_text(self, text: Float[Array, "l b s d"]) -> Float[Array, "b s e"]:
        """Aggregates text tokens alone, as for the empty prompt."""
        return self.text(text)

    def example(self) -> tuple[Array, ...]:
        """Returns the smallest inputs that use every parameter."""
        states = jnp.zeros((self.config.num_states, 1, 1, self.config.input_dim))
        return states, states


class Aggregator(nn.Module):
    """LAP followed by a connector: RMSNorm, linear, SiLU, linear."""

    config: DLAConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, states: Float[Array, "l b s d"], mask: Bool[Array, "b s"] | None = None
    ) -> Float[Array, "b s e"]:
        """Returns one context token per token."""
        x = LayerwiseAttentionPooling(self.config, self.compute, name="lap")(states, mask)
        x = RMSNorm(self.config.eps, name="norm")(x)
        x = jax.nn.silu(Dense(self.config.context_dim, name="linear_1")(x))
        return Dense(self.config.context_dim, name="linear_2")(x)


class LayerwiseAttentionPooling(nn.Module):
    """Transformer blocks across the layer axis, per token, then a weighted sum over layers.

    Source: UniFusion (arXiv 2510.12789), LAP; with `width == input_dim`, `norm_states` off and the same sizes it
    computes the same function as diffusers' `Krea2TextFusion`.
    """

    config: DLAConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, states: Float[Array, "l b s d"], mask: Bool[Array, "b s"] | None = None
    ) -> Float[Array, "b s w"]:
        """Returns the pooled states; `mask` is False at tokens that the refiner blocks do not attend to."""
        config, compute = self.config, self.compute
        batch = states.shape[1]
        pooled = states[slice(*config.states)]
        x = rearrange(pooled.astype(compute.dtype), "l b s d -> (b s) l d")
        if config.norm_states:
            scale = parameter(self, "layer_norms", nn.initializers.ones_init(), (config.num_pooled, config.input_dim))
            x = rms_norm(x, scale, config.eps)
        if config.width != config.input_dim:
            x = Dense(config.width, use_bias=False, name="down")(x)
        x, _ = stack(Block, config.num_blocks, compute)(config, compute, name="blocks")(x, None)

        mean = nn.initializers.constant(1 / config.num_pooled)
        x = Dense(1, use_bias=False, kernel_init=mean, name="pool")(rearrange(x, "n l d -> n d l"))
        x = rearrange(x, "(b s) d 1 -> b s d", b=batch)
        if config.num_refiner_blocks:
            keys = None if mask is None else mask[:, None, None, :]
            x, _ = stack(Block, config.num_refiner_blocks, compute)(config, compute, name="refiner_blocks")(x, keys)
        return x

    def example(self) -> tuple[Array, ...]:
        """Returns the smallest inputs that use every parameter."""
        return (jnp.zeros((self.config.num_states, 1, 1, self.config.input_dim)),)


class Block(nn.Module):
    """Pre-norm attention with QK norm and a sigmoid output gate, then a SwiGLU MLP; no biases."""

    config: DLAConfig
    compute: Compute

    @nn.compact
    def __call__(
        self, x: Float[Array, "b s d"], keys: Bool[Array, "b 1 1 s"] | None
    ) -> tuple[Float[Array, "b s d"], None]:
        """Applies the block; `keys` is True at tokens that may be attended to."""
        config = self.config

        def project(width: int, name: str, x: Array) -> Array:
            return Dense(width, use_bias=False, name=name)(x)

        h = RMSNorm(config.eps, name="norm1")(x)
        head = config.width // config.num_heads
        q, k, v = (
            rearrange(project(head * heads, name, h), "b s (h k) -> b s h k", h=heads)
            for name, heads in (
                ("to_q", config.num_heads),
                ("to_k", config.num_kv_heads),
                ("to_v", config.num_kv_heads),
            )
        )
        q, k = RMSNorm(config.eps, name="norm_q")(q), RMSNorm(config.eps, name="norm_k")(k)
        attended = rearrange(attend(q, k, v, keys, implementation=self.compute.attention), "b s h k -> b s (h k)")
        attended *= jax.nn.sigmoid(project(config.width, "to_gate", h))
        x += project(config.width, "to_out", attended)

        h = RMSNorm(config.eps, name="norm2")(x)
        gate, up = (project(config.intermediate_size, name, h) for name in ("gate_proj", "up_proj"))
        hidden = swiglu(gate, up)
        return x + project(config.width, "down_proj", constrain(hidden, "batch", "seq", "hidden")), None
