"""InternVL, a multimodal LLM that returns hidden states of every layer. Source: transformers `InternVLModel`."""

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
    """Sizes of the vision tower, the language model and the projector, named as in a transformers `config.json`."""

    vision: ViTConfig
    text: Qwen2Config
    image_token_id: int
    """Token whose embeddings are replaced by visual features."""
    downsample_ratio: float
    """Equal to 1 / r, where r × r neighboring patches become one token."""
    tie_word_embeddings: bool
    """Whether the token embedding is the output head."""

    @property
    def merge(self) -> int:
        """Number of patches along a side of a token (r)."""
        return round(1 / self.downsample_ratio)

    @property
    def tokens_per_tile(self) -> int:
        """Number of image tokens in a prompt per tile."""
        return (self.vision.grid // self.merge) ** 2


class InternVL(nn.Module):
    """Vision tower, projector and decoder."""

    config: InternVLConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        """Creates the submodules."""
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
        """Returns the embeddings as state 0, the output of layer i as state i, the last one after the final norm.

        `pixel_values` (normalized, channels last) contains the tiles of all rows in order; prompts contain
        `tokens_per_tile` image tokens per tile. The counts are not checked: extra tiles at the end are ignored, so a
        batch may be padded to one shape, and extra image tokens repeat the last feature.
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
        """Returns the visual features that replace the embeddings of each tile's image tokens."""
        return self.projector(merge_patches(self.vision(pixel_values)[:, 1:], self.config.merge))

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s vocab"]:
        """Returns logits of the next token, from the last hidden state."""
        return self.text.unembed(hidden) if self.config.tie_word_embeddings else self.lm_head(hidden)

    def example(self) -> tuple[Array, ...]:
        """Returns the smallest inputs that use every parameter."""
        vision, one = self.config.vision, jnp.ones((1, 1), jnp.int32)
        return one, one, jnp.zeros((1, vision.image_size, vision.image_size, vision.num_channels))


class Projector(nn.Module):
    """Layer norm, linear, GELU, linear, from merged patches to the decoder's width."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "t n e"]) -> Float[Array, "t n d"]:
        """Projects merged patches."""
        hidden = Dense(self.width, name="linear_1")(LayerNorm(PROJECTOR_EPS, name="layer_norm")(x))
        return Dense(self.width, name="linear_2")(jax.nn.gelu(hidden, approximate=False))


def merge_patches(patches: Float[Array, "t n d"], merge: int) -> Float[Array, "t m e"]:
    """Concatenates the channels of `merge` × `merge` neighboring patches, row by row.

    Source: transformers `InternVLModel.pixel_shuffle`.
    """
    grid = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "t (y p x q) d -> t (y x) (p q d)", y=grid // merge, p=merge, x=grid // merge, q=merge)


def place(features: Float[Array, "m d"], embeds: Float[Array, "b s d"], where: Bool[Array, "b s"]) -> Array:
    """Returns `embeds` with the i-th True of `where`, counted row by row, replaced by `features[i]`.

    For example, `where` [[0, 1, 1], [0, 0, 1]] takes features 0, 1 and 2.
    """
    index = jnp.cumsum(jnp.ravel(where)).reshape(where.shape) - 1
    return jnp.where(where[..., None], jnp.take(features, index, axis=0, mode="clip"), embeds)
