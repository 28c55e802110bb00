"""FLUX's autoencoder, channels last.

Each level but the last halves height and width, so four levels give latents of an eighth of the size.
Source: diffusers `AutoencoderKL` without quant convolutions; black-forest-labs/flux `src/flux/modules/autoencoder.py`.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from mllmsubj.models.layers import Compute, Dense, parameter
from mllmsubj.ops.attention import attend
from mllmsubj.parallel.sharding import constrain
from mllmsubj.typing import Array, Float

EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class VAEConfig:
    """Sizes, named as in a diffusers `config.json`."""

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    """Width of each level, from full resolution down."""
    layers_per_block: int
    """Residual blocks of an encoder level; a decoder level has one more."""
    latent_channels: int
    norm_num_groups: int
    """Groups of every group norm; divides every width."""
    mid_block_add_attention: bool
    scaling_factor: float
    shift_factor: float


class AutoencoderKL(nn.Module):
    """Encoder from images to a Gaussian over latents, and decoder from latents to images."""

    config: VAEConfig
    compute: Compute = Compute()

    def setup(self) -> None:
        """Creates the submodules."""
        self.encoder = Encoder(self.config, self.compute)
        self.decoder = Decoder(self.config, self.compute)

    def __call__(self, images: Float[Array, "b height width c"]) -> Float[Array, "b height width c"]:
        """Returns the reconstruction from the latent mean, which uses every parameter."""
        return self.decode(self.encode(images)[0])

    def encode(
        self, images: Float[Array, "b height width c"]
    ) -> tuple[Float[Array, "b y x z"], Float[Array, "b y x z"]]:
        """Returns mean and log variance (in [−30, 20]) of raw latents, from images in [−1, 1]."""
        mean, logvar = jnp.split(self.encoder(images.astype(self.compute.dtype)), 2, axis=-1)
        return mean, jnp.clip(logvar, *LOGVAR_RANGE)

    def decode(self, latents: Float[Array, "b y x z"]) -> Float[Array, "b height width c"]:
        """Returns images, about in [−1, 1] and not clipped, from raw latents (see `from_latents`)."""
        return self.decoder(latents.astype(self.compute.dtype))

    def to_latents(self, raw: Float[Array, "b y x z"]) -> Float[Array, "b y x z"]:
        """Returns (raw − shift) · scale, the transformer's latents, whose variance is near one."""
        return (raw - self.config.shift_factor) * self.config.scaling_factor

    def from_latents(self, latents: Float[Array, "b y x z"]) -> Float[Array, "b y x z"]:
        """Inverts `to_latents`."""
        return latents / self.config.scaling_factor + self.config.shift_factor

    def example(self) -> tuple[Array, ...]:
        """Returns the smallest inputs that use every parameter: one latent pixel."""
        size = 2 ** (len(self.config.block_out_channels) - 1)
        return (jnp.zeros((1, size, size, self.config.in_channels)),)


class Encoder(nn.Module):
    """Images to latent mean and log variance, concatenated along the channels."""

    config: VAEConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b height width c"]) -> Float[Array, "b y x z"]:
        """Encodes images; z is twice `latent_channels`."""
        config, widths = self.config, self.config.block_out_channels
        x = _conv("conv_in", x, widths[0])
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            resample = None if last else "downsample"
            block = Level(config, self.compute, width, config.layers_per_block, resample, name=f"down_blocks_{level}")
            x = block(x)
        x = MidBlock(config, self.compute, name="mid_block")(x)
        x = jax.nn.silu(GroupNorm(config.norm_num_groups, name="conv_norm_out")(x))
        return _conv("conv_out", x, 2 * config.latent_channels)


class Decoder(nn.Module):
    """Latents to images: the encoder's levels in reverse, each with one residual block more."""

    config: VAEConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b y x z"]) -> Float[Array, "b height width c"]:
        """Decodes latents."""
        config, widths = self.config, self.config.block_out_channels[::-1]
        x = _conv("conv_in", x, widths[0])
        x = MidBlock(config, self.compute, name="mid_block")(x)
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            resample = None if last else "upsample"
            block = Level(config, self.compute, width, config.layers_per_block + 1, resample, name=f"up_blocks_{level}")
            x = block(x)
        x = jax.nn.silu(GroupNorm(config.norm_num_groups, name="conv_norm_out")(x))
        return _conv("conv_out", x, config.out_channels)


class Level(nn.Module):
    """Residual blocks of one width, then at most one change of resolution by a factor of two."""

    config: VAEConfig
    compute: Compute
    width: int
    depth: int
    resample: str | None
    """Either "downsample", "upsample" or None."""

    @nn.compact
    def __call__(self, x: Float[Array, "b height width c"]) -> Float[Array, "b y x d"]:
        """Applies the blocks, then resamples."""
        resnet = _resnet(self.compute)
        for i in range(self.depth):
            x = resnet(self.width, self.config.norm_num_groups, name=f"resnets_{i}")(x)
        if self.resample == "downsample":
            return Downsample(name="downsample")(x)
        return Upsample(name="upsample")(x) if self.resample == "upsample" else x


class MidBlock(nn.Module):
    """Residual block, attention over all pixels, residual block, at the lowest resolution."""

    config: VAEConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"]) -> Float[Array, "b y x d"]:
        """Applies the blocks."""
        resnet, groups = _resnet(self.compute), self.config.norm_num_groups
        x = resnet(x.shape[-1], groups, name="resnets_0")(x)
        if self.config.mid_block_add_attention:
            x = PixelAttention(groups, name="attentions_0")(x)
        return resnet(x.shape[-1], groups, name="resnets_1")(x)


class ResnetBlock(nn.Module):
    """Residual block, x + conv(silu(norm(conv(silu(norm(x)))))); a 1 × 1 convolution on x changes the width."""

    width: int
    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "b height width c"]) -> Float[Array, "b height width d"]:
        """Applies the block."""
        h = _conv("conv1", jax.nn.silu(GroupNorm(self.groups, name="norm1")(x)), self.width)
        h = _conv("conv2", jax.nn.silu(GroupNorm(self.groups, name="norm2")(h)), self.width)
        if x.shape[-1] != self.width:
            x = _conv("conv_shortcut", x, self.width, kernel=1)
        return constrain(x + h, "batch", "seq", "seq", "embed")


class PixelAttention(nn.Module):
    """Single-head attention over all pixels, added to its input.

    The head is as wide as the level (512), which is more than fused kernels support.
    """

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"]) -> Float[Array, "b y x d"]:
        """Applies attention."""
        height, width, channels = x.shape[1:]
        h = rearrange(GroupNorm(self.groups, name="group_norm")(x), "b y x d -> b (y x) d")
        q, k, v = (Dense(channels, name=f"to_{part}")(h)[:, :, None, :] for part in "qkv")
        out = Dense(channels, name="to_out")(rearrange(attend(q, k, v), "b s h k -> b s (h k)"))
        return x + rearrange(out, "b (y x) d -> b y x d", y=height, x=width)


class Downsample(nn.Module):
    """Convolution, 3 × 3 with stride 2, padded at the bottom and right only."""

    @nn.compact
    def __call__(self, x: Float[Array, "b height width d"]) -> Float[Array, "b y x d"]:
        """Halves height and width."""
        return _conv("conv", x, x.shape[-1], stride=2, padding=((0, 1), (0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbor upsampling by two, then a 3 × 3 convolution."""

    @nn.compact
    def __call__(self, x: Float[Array, "b y x d"]) -> Float[Array, "b height width d"]:
        """Doubles height and width."""
        return _conv("conv", repeat(x, "b y x d -> b (y p) (x q) d", p=2, q=2), x.shape[-1])


class GroupNorm(nn.Module):
    """Group norm over all pixels and the channels of a group, with scale and bias per channel, in float32."""

    groups: int

    @nn.compact
    def __call__(self, x: Float[Array, "b height width d"]) -> Float[Array, "b height width d"]:
        """Normalizes; the result has the dtype of `x`."""
        scale = parameter(self, "scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros_init(), (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide -= self._mean(wide)
        wide *= jax.lax.rsqrt(self._mean(wide * wide) + EPS)
        return (wide * scale + bias).astype(x.dtype)

    def _mean(self, x: Float[Array, "b height width d"]) -> Float[Array, "b 1 1 d"]:
        """Returns the mean of each channel's group.

        Axes are reduced one by one, groups last: the code is vectorized on CPUs while the channel axis is not split.
        """
        channels = jnp.mean(jnp.mean(x, axis=1), axis=1)
        groups = jnp.mean(rearrange(channels, "b (g c) -> b g c", g=self.groups), axis=2)
        return repeat(groups, "b g -> b 1 1 (g c)", c=x.shape[-1] // self.groups)


def _resnet(compute: Compute) -> type[nn.Module]:
    return nn.remat(ResnetBlock) if compute.remat else ResnetBlock


def _conv(
    name: str,
    x: Array,
    features: int,
    kernel: int = 3,
    stride: int = 1,
    padding: tuple[tuple[int, int], ...] | None = None,
) -> Array:
    """Applies a square convolution; without `padding` the image keeps its size.

    The constraints keep the batch sharded: otherwise XLA gathers the whole batch instead of the small kernel.
    """
    padding = padding or ((kernel // 2, kernel // 2),) * 2
    x = constrain(x, "batch", "seq", "seq", "embed")
    x = nn.Conv(features, (kernel, kernel), (stride, stride), padding, dtype=x.dtype, name=name)(x)
    return constrain(x, "batch", "seq", "seq", "embed")
