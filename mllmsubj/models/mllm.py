"""InternVL: pictures and text in, hidden states of every layer out. Source: transformers `InternVLModel`."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mllmsubj.models.layers import Compute, Dense, LayerNorm
from mllmsubj.models.qwen2 import Qwen2Config, Qwen2Decoder
from mllmsubj.models.vit import InternViT, ViTConfig
from mllmsubj.typing import Array, Bool, Float, Int

PROJECTOR_EPS = 1e-5


@dataclass(frozen=True)
class InternVLConfig:
    """Sizes of the vision tower, the language model and what joins them, named as in a transformers `config.json`."""

    vision: ViTConfig
    text: Qwen2Config
    image_token_id: int
    """Token whose embeddings the visual features replace."""
    downsample_ratio: float
    """1 / r: r × r neighbouring patches become one token."""
    tie_word_embeddings: bool
    """Whether the head is the token embedding."""

    @property
    def merge(self) -> int:
        """Patches along a side of a token (r)."""
        return round(1 / self.downsample_ratio)

    @property
    def tokens_per_tile(self) -> int:
        """How often `image_token_id` stands in a prompt for each tile."""
        return (self.vision.grid // self.merge) ** 2


class InternVL(nn.Module):
    """A vision tower, a projector and a decoder."""

    config: InternVLConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        config = self.config
        self.vision = InternViT(config.vision, self.compute)
        self.projector = Projector(config.text.hidden_size)
        self.text = Qwen2Decoder(config.text, self.compute)
        if not config.tie_word_embeddings:
            self.lm_head = Dense(config.text.vocab_size, use_bias=False)

    def __call__(
        self,
        input_ids: Int[Array, "b s"],
        attention_mask: Int[Array, "b s"] | Bool[Array, "b s"],
        pixel_values: Float[Array, "t height width c"] | None = None,
    ) -> Float[Array, "states b s d"]:
        """Hidden states: 0 the embeddings, i the output of layer i, the last one after the final norm.

        The tiles of all rows follow one another in `pixel_values` (normalised, channels last); the prompts hold
        `tokens_per_tile` image tokens for each. Nothing checks that under jit: spare tiles at the end are ignored,
        so that a batch may be filled up to one shape, and image tokens too many repeat the last feature.
        """
        embeds = self.text.embed(input_ids)
        if pixel_values is not None:
            features = rearrange(self.see(pixel_values), "t n d -> (t n) d")
            embeds = place(features, embeds, input_ids == self.config.image_token_id)
        hidden = self.text(embeds, attention_mask)
        if self.is_initializing():
            self.logits(hidden[-1])
        return hidden

    def see(self, pixel_values: Float[Array, "t height width c"]) -> Float[Array, "t n d"]:
        """What stands for each tile's image tokens."""
        return self.projector(merge_patches(self.vision(pixel_values)[:, 1:], self.config.merge))

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s vocab"]:
        """Scores of the next token, from the last of the hidden states."""
        return self.text.unembed(hidden) if self.config.tie_word_embeddings else self.lm_head(hidden)

    def example(self) -> tuple[Array, ...]:
        """The smallest inputs that touch every parameter."""
        vision, one = self.config.vision, jnp.ones((1, 1), jnp.int32)
        return one, one, jnp.zeros((1, vision.image_size, vision.image_size, vision.num_channels))


class Projector(nn.Module):
    """Layer norm, linear, GELU, linear: from merged patches to the decoder's width."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "t n e"]) -> Float[Array, "t n d"]:
        hidden = Dense(self.width, name="linear_1")(LayerNorm(PROJECTOR_EPS, name="layer_norm")(x))
        return Dense(self.width, name="linear_2")(jax.nn.gelu(hidden, approximate=False))


def merge_patches(patches: Float[Array, "t n d"], merge: int) -> Float[Array, "t m e"]:
    """Channels of `merge` × `merge` neighbouring patches in one token, row by row.

    Source: transformers `InternVLModel.pixel_shuffle`.
    """
    grid = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "t (y p x q) d -> t (y x) (p q d)", y=grid // merge, p=merge, x=grid // merge, q=merge)


def place(features: Float[Array, "m d"], embeds: Float[Array, "b s d"], where: Bool[Array, "b s"]) -> Array:
    """`embeds` with the i-th True of `where`, counted row by row, replaced by `features[i]`.

    `where` [[0, 1, 1], [0, 0, 1]] takes features 0, 1 and 2.
    """
    index = jnp.cumsum(jnp.ravel(where)).reshape(where.shape) - 1
    return jnp.where(where[..., None], jnp.take(features, index, axis=0, mode="clip"), embeds)
