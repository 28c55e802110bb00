"""A small network that classifies the attributes of a picture, for evaluating generated images.

It has two stages. The global glimpse, over the whole picture, predicts the scene and the subject's position and size.
The local glimpse, over a crop of the subject resampled to a fixed size, predicts the rest: in the crop, a hat covers
the same pixels whatever the subject's position and size, so that far fewer training pictures suffice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce

from mllmsubj.models.layers import Dense, parameter
from mllmsubj.models.vae import GroupNorm
from mllmsubj.typing import Array, Float

DISTANCES = (2, 4, 6)
"""Distances in pixels between the points whose colors `variogram` compares."""
WINDOW = 5
"""Side in pixels of the windows over which `variogram` averages."""


@dataclass(frozen=True)
class GlimpseConfig:
    """Sizes of a glimpse."""

    stem: int
    """Side in pixels of a cell of the first level."""
    widths: tuple[int, ...]
    """Channels of each level; the side of a cell doubles from level to level."""
    blocks: tuple[int, ...]
    """Number of residual convolutions of each level."""

    @property
    def cell(self) -> int:
        """Side in pixels of a cell of the last level; must divide the side of the input."""
        return self.stem * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class ProbeConfig:
    """Sizes of the probe."""

    whole: GlimpseConfig
    """Global glimpse, over the whole picture."""
    close: GlimpseConfig
    """Local glimpse, over the crop."""
    cut: int
    """Side of the crop in pixels, after resampling."""
    span: float
    """Side of the crop in the picture, in units of the subject's size."""
    norm_num_groups: int
    """Groups of the group norms; must divide every width."""
    maps: int
    """Number of attention maps per attribute."""


class Probe(nn.Module):
    """Classifier from pictures of a fixed size to the logits of each attribute's values."""

    config: ProbeConfig
    size: int
    """Side of the pictures in pixels."""
    attributes: Mapping[str, int]
    """Name -> number of values."""
    close: tuple[str, ...]
    """Attributes that the local glimpse predicts."""
    places: Mapping[str, tuple[float, ...]]
    """Values of three attributes as fractions of the picture's side: horizontal position, vertical position of the feet
    and size. The subject's center is half its size above its feet."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "b height width c"], places: Float[Array, "b 3"] | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Returns the logits by attribute, from images in [−1, 1].

        `places`: horizontal position, vertical position and size; by default, as the global glimpse expects them.
        """
        config = self.config
        far = {name: count for name, count in self.attributes.items() if name not in self.close}
        near = {name: self.attributes[name] for name in self.close}
        found = Glimpse(config.whole, config, far, name="whole")(images)
        if places is None:
            shares = [jax.nn.softmax(found[name]) @ jnp.asarray(values) for name, values in self.places.items()]
            places = jax.lax.stop_gradient(jnp.stack(shares, axis=1))
        subject = crop_subjects(images, places, config.span, config.cut)
        found |= Glimpse(config.close, config, near, name="close")(
            jnp.concatenate([subject, variogram(subject)], axis=3)
        )
        return {name: found[name] for name in self.attributes}

    def example(self) -> tuple[Array, ...]:
        """Returns inputs for `layers.init_params`."""
        return (jnp.zeros((1, self.size, self.size, 3)),)


class Glimpse(nn.Module):
    """Convolutional encoder to cells with position embeddings, pooled by attention maps of each attribute."""

    config: GlimpseConfig
    probe: ProbeConfig
    attributes: Mapping[str, int]

    @nn.compact
    def __call__(self, images: Float[Array, "b height width c"]) -> dict[str, Float[Array, "b _"]]:
        """Returns the logits by attribute."""
        config, groups = self.config, self.probe.norm_num_groups
        x = _halve("stem", images, config.widths[0], config.stem)
        for level, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            if level:
                x = _halve(f"down_{level}", jax.nn.relu(GroupNorm(groups, name=f"norm_{level}")(x)), width, 2)
            for i in range(blocks):
                h = jax.nn.relu(GroupNorm(groups, name=f"norm_{level}_{i}")(x))
                x = x + nn.Conv(width, (3, 3), name=f"conv_{level}_{i}")(h)
        x = jax.nn.relu(GroupNorm(groups, name="norm_out")(x))
        x = x + parameter(self, "position", nn.initializers.normal(0.1), x.shape[1:])
        x = x + Dense(x.shape[-1], name="all")(reduce(x, "b y x d -> b 1 1 d", "mean"))
        return attention_pool_logits(rearrange(x, "b y x d -> b (y x) d"), self.attributes, self.probe.maps)


def attention_pool_logits(
    cells: Float[Array, "b n d"], attributes: Mapping[str, int], maps: int
) -> dict[str, Float[Array, "b _"]]:
    """Returns the logits by attribute, each from `maps` attention poolings; its layers belong to the calling module."""
    looks = jax.nn.softmax(Dense(len(attributes) * maps, name="maps")(cells), axis=1)
    seen = rearrange(jnp.einsum("bsm,bsd->bmd", looks, cells), "b (a m) d -> a b (m d)", m=maps)
    return {
        name: Dense(count, name=f"read_{name}")(own)
        for own, (name, count) in zip(seen, attributes.items(), strict=True)
    }


def crop_subjects(
    images: Float[Array, "b height width c"], places: Float[Array, "b 3"], span: float, pixels: int
) -> Float[Array, "b pixels pixels c"]:
    """Returns square crops around the subjects, resampled with a triangle filter; 0 outside of the picture.

    `places`: as in `Probe`. `span`: side of a crop in units of the subject's size. `pixels`: its side after resampling.
    """
    across, down, size = places.T
    rows = _samples(down - 0.5 * size, span * size, pixels, images.shape[1])
    columns = _samples(across, span * size, pixels, images.shape[2])
    return jnp.einsum("biy,byxc,bjx->bijc", rows, images, columns)


def variogram(images: Float[Array, "b height width c"]) -> Float[Array, "b height width v"]:
    """Returns squared color differences at each of 12 offsets, averaged over windows, as log ratios to their mean.

    The ratios depend little on which of the 90 pairs of colors a texture has.

    Source: Matheron, Principles of geostatistics, 1963.
    """
    height, width = images.shape[1:3]
    reach, window = max(DISTANCES), (1, WINDOW, WINDOW, 1)
    padded = jnp.pad(images, ((0, 0), (0, reach), (reach, reach), (0, 0)), mode="edge")
    others = [
        padded[:, y * far : y * far + height, reach + x * far : reach + x * far + width]
        for far in DISTANCES
        for y, x in ((0, 1), (1, 0), (1, 1), (1, -1))
    ]
    differences = jnp.stack([jnp.sum((other - images) ** 2, axis=3) for other in others], axis=3)
    differences = jax.lax.reduce_window(differences, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME") / WINDOW**2
    return jnp.log(differences / (differences.mean(axis=3, keepdims=True) + 0.02) + 0.05)


def _samples(middle: Float[Array, " b"], side: Float[Array, " b"], pixels: int, length: int) -> Float[Array, "b p n"]:
    """Returns the weights of the picture's `length` pixels in each pixel of the crop, along one axis."""
    at = (jnp.arange(pixels) + 0.5) / pixels - 0.5
    points = length * (middle[:, None] + at * side[:, None]) - 0.5
    reach = jnp.maximum(1.0, length * side / pixels)[:, None, None]
    weights = jax.nn.relu(1.0 - jnp.abs(points[:, :, None] - jnp.arange(length)) / reach)
    return weights / jnp.maximum(weights.sum(axis=2, keepdims=True), 1e-3)


def _halve(name: str, x: Array, width: int, by: int) -> Array:
    """Downsamples by a convolution over non-overlapping windows."""
    return nn.Conv(width, (by, by), (by, by), "VALID", name=name)(x)
