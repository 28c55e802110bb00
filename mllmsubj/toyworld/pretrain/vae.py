"""Pretraining of the tiny VAE, whose latents have an eighth of the picture's resolution."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.config.data import DataConfig
from mllmsubj.data.batch import Rows
from mllmsubj.data.plan import Bucket
from mllmsubj.models.layers import init_params
from mllmsubj.models.subject import SubjectModel
from mllmsubj.ops.pixels import from_uint8
from mllmsubj.toyworld import Picture, Split
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.settings import VAEPretrainConfig
from mllmsubj.train.evaluator import Value
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.typing import Array, Float, Leaf, Params

TERMS = ("pixels", "gradient", "kl")
SHOWN = 6
"""Number of pictures that are shown with their reconstructions."""


@flax.struct.dataclass
class CropBatch(Rows):
    """Random crops of pictures."""

    pixels: Leaf
    """[b, window, window, 3] uint8."""


@dataclass(frozen=True)
class CropReader:
    """Reads a random crop of each picture."""

    config: DataConfig
    crop_size: int

    def augmentation(self) -> str:
        """Returns a description of the augmentation."""
        return f"windows of {self.crop_size}"

    def empty(self, bucket: Bucket, rows: int) -> CropBatch:
        """Returns a batch of uninitialized rows."""
        return CropBatch(
            example=np.empty(rows, np.int32),
            skipped=np.empty(rows, np.int32),
            pixels=np.empty((rows, self.crop_size, self.crop_size, 3), np.uint8),
        )

    def read(self, picture: Picture, bucket: Bucket, rng: np.random.Generator, batch: CropBatch, row: int) -> None:
        """Writes a random crop of the picture to `row`."""
        pixels = picture.render(bucket.height)
        top, left = rng.integers(0, bucket.height - self.crop_size, 2, endpoint=True)
        batch.pixels[row] = pixels[top : top + self.crop_size, left : left + self.crop_size]


@dataclass(frozen=True)
class VAEComponent:
    """The VAE; see `pretrain.component.Component`."""

    model: SubjectModel
    config: VAEPretrainConfig
    size: int

    name = "vae"
    bins: ClassVar[Mapping[str, BinnedMetrics]] = {"terms": BinnedMetrics("loss_part", TERMS)}
    meanings: ClassVar[Mapping[str, str]] = {
        "vae/psnr": "Peak signal-to-noise ratio of reconstructions from the posterior's mean, dB: mean over pictures",
        "vae/latent_mean": "Mean of raw latents: what model.vae.shift_factor should be",
        "vae/latent_std": "Their deviation: model.vae.scaling_factor should be its inverse",
        "vae/posterior_std": "The posterior's own deviation, mean over all numbers",
    }

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters."""
        return {"vae": init_params(self.model.vae, key)}

    def frozen(self) -> Params:
        """Returns no parameters, because the VAE builds on no other component."""
        return {}

    def source(self, pictures: PictureSource, threads: int) -> PictureSource:
        """Returns the pictures."""
        return pictures

    def reader(self, data: DataConfig) -> CropReader:
        """Returns a reader of random crops."""
        return CropReader(data, self.config.crop_size)

    def losses(
        self, params: Params, frozen: Params, batch: CropBatch, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Returns L1 losses of pixels and of their differences, plus the KL divergence; latents are sampled."""
        images = from_uint8(batch.pixels)
        mean, logvar = self._call(params, images, "encode")
        drawn = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        error = self._call(params, drawn, "decode") - images
        whole = partial(jnp.mean, axis=(1, 2, 3))
        gradient = whole(jnp.abs(jnp.diff(error, axis=1))) + whole(jnp.abs(jnp.diff(error, axis=2)))
        terms = jnp.stack(
            [
                whole(jnp.abs(error)),
                self.config.gradient_weight * gradient,
                self.config.kl_weight * 0.5 * whole(mean**2 + jnp.exp(logvar) - 1.0 - logvar),
            ]
        )
        return terms.sum(axis=0), {"terms": jnp.stack([terms.sum(axis=1), jnp.full(len(terms), len(images))])}

    def evaluate(self, params: Params, frozen: Params) -> Iterator[tuple[str, Value]]:
        """Evaluates reconstructions from the posterior's mean, and the statistics of the latents."""
        source = PictureSource(Split.TEST, self.config.num_eval_examples, self.size)
        psnr: list[float] = []
        means, variances, shown = [], [], np.empty(0)
        reconstruct = jax.jit(self._reconstruct)
        for first in range(0, len(source), self.config.batch_size):
            numbers = range(first, min(first + self.config.batch_size, len(source)))
            pixels = np.stack([source[i].render(self.size) for i in numbers])
            images, mean, logvar = jax.device_get(reconstruct(params, pixels))
            psnr += list(-10.0 * np.log10(np.mean((pixels / 255.0 - images / 255.0) ** 2, axis=(1, 2, 3))))
            means.append(mean)
            variances.append(np.exp(logvar))
            if first == 0:
                shown = np.concatenate([pixels, images.round().astype(np.uint8)], axis=2)[:SHOWN]
        latents = np.concatenate(means)
        yield "vae/psnr", float(np.mean(psnr))
        yield "vae/latent_mean", float(latents.mean())
        yield "vae/latent_std", float(np.sqrt(latents.var() + np.concatenate(variances).mean()))
        yield "vae/posterior_std", float(np.sqrt(np.concatenate(variances)).mean())
        yield "vae/reconstructions", shown

    def _reconstruct(self, params: Params, pixels: Array) -> tuple[Array, Array, Array]:
        """Returns reconstructions of 8-bit pictures, in [0, 255], and mean and log variance of their latents."""
        mean, logvar = self._call(params, from_uint8(pixels), "encode")
        return jnp.clip((self._call(params, mean, "decode") + 1.0) * 127.5, 0.0, 255.0), mean, logvar

    def _call(self, params: Params, x: Array, method: str) -> Any:
        return self.model.vae.apply({"params": params["vae"]}, x, method=method)
