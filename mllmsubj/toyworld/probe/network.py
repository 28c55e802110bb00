"""A small network that reads attributes off a picture, for judging what others draw.

It looks twice. A look at the whole picture reads the scene, and where in it the subject stands and how large it is. A
look at the subject alone, cut out there and brought to one size, reads the rest: a hat is the same few pixels wherever
and however large its wearer is drawn, so far fewer pictures teach it.
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
"""Pixels from one to the other of those whose colours `variogram` compares."""
WINDOW = 5
"""Side of its means, pixels."""


@dataclass(frozen=True)
class GlimpseConfig:
    """Sizes of a look."""

    stem: int
    """Pixels of the side of a cell of the first level."""
    widths: tuple[int, ...]
    """Of each level; a level's cells are twice as large as the one's before."""
    blocks: tuple[int, ...]
    """Residual convolutions of each level."""

    @property
    def cell(self) -> int:
        """Pixels of the side of a cell of the last level; divides a picture's side."""
        return self.stem * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class ProbeConfig:
    """Sizes."""

    whole: GlimpseConfig
    close: GlimpseConfig
    cut: int
    """Pixels of the side of what is cut out."""
    span: float
    """Its side in the picture, in units of the subject's size."""
    norm_num_groups: int
    """Divides every width."""
    maps: int
    """Attention maps of an attribute."""


class Probe(nn.Module):
    """Pictures of one size to logits of the values of each attribute."""

    config: ProbeConfig
    size: int
    """Pixels of the side of its pictures."""
    attributes: Mapping[str, int]
    """Name -> number of values."""
    close: tuple[str, ...]
    """Attributes that a close look reads."""
    places: Mapping[str, tuple[float, ...]]
    """The values of three attributes as parts of a picture's side: across, down, and size; the subject's middle is half
    its size above there."""

    @nn.compact
    def __call__(
        self, images: Float[Array, "b height width c"], places: Float[Array, "b 3"] | None = None
    ) -> dict[str, Float[Array, "b _"]]:
        """Of images in [−1, 1]. `places`: across, down and size, if known; else those that the first look expects."""
        config = self.config
        far = {name: count for name, count in self.attributes.items() if name not in self.close}
        near = {name: self.attributes[name] for name in self.close}
        found = Glimpse(config.whole, config, far, name="whole")(images)
        if places is None:
            shares = [jax.nn.softmax(found[name]) @ jnp.asarray(values) for name, values in self.places.items()]
            places = jax.lax.stop_gradient(jnp.stack(shares, axis=1))
        subject = cut_out(images, places, config.span, config.cut)
        found |= Glimpse(config.close, config, near, name="close")(
            jnp.concatenate([subject, variogram(subject)], axis=3)
        )
        return {name: found[name] for name in self.attributes}

    def example(self) -> tuple[Array, ...]:
        """See `layers.init_params`."""
        return (jnp.zeros((1, self.size, self.size, 3)),)


class Glimpse(nn.Module):
    """Convolutions to cells that know where they are; each attribute is read off them by attention maps of its own."""

    config: GlimpseConfig
    probe: ProbeConfig
    attributes: Mapping[str, int]

    @nn.compact
    def __call__(self, images: Float[Array, "b height width c"]) -> dict[str, Float[Array, "b _"]]:
        """Returns the logits of each attribute."""
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
        return read_off(rearrange(x, "b y x d -> b (y x) d"), self.attributes, self.probe.maps)


def read_off(cells: Float[Array, "b n d"], attributes: Mapping[str, int], maps: int) -> dict[str, Float[Array, "b _"]]:
    """Logits of each attribute, off what its `maps` attention maps see; layers of the module that calls this."""
    looks = jax.nn.softmax(Dense(len(attributes) * maps, name="maps")(cells), axis=1)
    seen = rearrange(jnp.einsum("bsm,bsd->bmd", looks, cells), "b (a m) d -> a b (m d)", m=maps)
    return {
        name: Dense(count, name=f"read_{name}")(own)
        for own, (name, count) in zip(seen, attributes.items(), strict=True)
    }


def cut_out(
    images: Float[Array, "b height width c"], places: Float[Array, "b 3"], span: float, pixels: int
) -> Float[Array, "b pixels pixels c"]:
    """Squares of `span` sizes around the subjects, resampled with triangles; 0 beyond the picture."""
    across, down, size = places.T
    rows = _samples(down - 0.5 * size, span * size, pixels, images.shape[1])
    columns = _samples(across, span * size, pixels, images.shape[2])
    return jnp.einsum("biy,byxc,bjx->bijc", rows, images, columns)


def variogram(images: Float[Array, "b height width c"]) -> Float[Array, "b height width v"]:
    """How much colours differ from those some pixels on, in the windows around, as logarithms of shares of their mean.

    Textures come in any of 90 pairs of colours; here each is one thing to learn. Source: Matheron, Principles of
    geostatistics, 1963.
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
    """Weights of the picture's `length` pixels in each of those that are cut out."""
    at = (jnp.arange(pixels) + 0.5) / pixels - 0.5
    points = length * (middle[:, None] + at * side[:, None]) - 0.5
    reach = jnp.maximum(1.0, length * side / pixels)[:, None, None]
    weights = jax.nn.relu(1.0 - jnp.abs(points[:, :, None] - jnp.arange(length)) / reach)
    return weights / jnp.maximum(weights.sum(axis=2, keepdims=True), 1e-3)


def _halve(name: str, x: Array, width: int, by: int) -> Array:
    """A convolution of windows that do not overlap."""
    return nn.Conv(width, (by, by), (by, by), "VALID", name=name)(x)
