"""A small network that reads attributes off a picture, for judging what others draw.

Each attribute looks at the picture through attention maps of its own, over cells that know where they are: so colours
are read where the subject is, and its place is read, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce

from mllmsubj.models.layers import Dense
from mllmsubj.models.vae import GroupNorm
from mllmsubj.typing import Array, Float


@dataclass(frozen=True)
class ProbeConfig:
    """Sizes."""

    stem: int
    """Pixels of the side of a cell of the first level."""
    widths: tuple[int, ...]
    """Of each level; a level's cells are twice as large as the one's before."""
    blocks: tuple[int, ...]
    """Residual convolutions of each level."""
    norm_num_groups: int
    """Divides every width."""
    maps: int
    """Attention maps of an attribute."""

    @property
    def cell(self) -> int:
        """Pixels of the side of a cell of the last level; divides a picture's side."""
        return self.stem * 2 ** (len(self.widths) - 1)


class Probe(nn.Module):
    """Pictures of one size to logits of the values of each attribute."""

    config: ProbeConfig
    size: int
    """Pixels of the side of its pictures."""
    attributes: Mapping[str, int]
    """Name -> number of values."""

    @nn.compact
    def __call__(self, images: Float[Array, "b height width c"]) -> dict[str, Float[Array, "b _"]]:
        """Of images in [−1, 1]."""
        config, groups = self.config, self.config.norm_num_groups
        x = _halve("stem", images, config.widths[0], config.stem)
        for level, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            if level:
                x = _halve(f"down_{level}", jax.nn.relu(GroupNorm(groups, name=f"norm_{level}")(x)), width, 2)
            if level == len(config.widths) - 1:
                x = x + Dense(width, name="whole")(reduce(x, "b y x d -> b 1 1 d", "mean"))
            for i in range(blocks):
                h = jax.nn.relu(GroupNorm(groups, name=f"norm_{level}_{i}")(x))
                x = x + nn.Conv(width, (3, 3), name=f"conv_{level}_{i}")(h)
        x = jax.nn.relu(GroupNorm(groups, name="norm_out")(x))
        x = x + self.param("position", nn.initializers.normal(0.1), (self.size // config.cell,) * 2 + x.shape[-1:])
        return self._read(rearrange(x, "b y x d -> b (y x) d"))

    def _read(self, cells: Float[Array, "b s d"]) -> dict[str, Float[Array, "b _"]]:
        """Each attribute from the means of the cells by its maps."""
        maps = Dense(len(self.attributes) * self.config.maps, name="maps")(cells)
        means = jnp.einsum("bsm,bsd->bmd", jax.nn.softmax(maps, axis=1), cells)
        seen = rearrange(means, "b (a m) d -> a b (m d)", m=self.config.maps)
        return {
            name: Dense(values, name=f"read_{name}")(own)
            for own, (name, values) in zip(seen, self.attributes.items(), strict=True)
        }

    def example(self) -> tuple[Array, ...]:
        """See `layers.init_params`."""
        return (jnp.zeros((1, self.size, self.size, 3)),)


def _halve(name: str, x: Array, width: int, by: int) -> Array:
    """A convolution of windows that do not overlap."""
    return nn.Conv(width, (by, by), (by, by), "VALID", name=name)(x)
