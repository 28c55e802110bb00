"""Pretraining of the probe, which reads identity, scene and pose from a picture to evaluate generated ones."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.config.data import DataConfig
from mllmsubj.data.batch import Rows
from mllmsubj.data.plan import Bucket
from mllmsubj.models.layers import init_params
from mllmsubj.ops.pixels import from_uint8
from mllmsubj.toyworld import Picture, Split
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.settings import ProbePretrainConfig
from mllmsubj.toyworld.probe.network import Probe
from mllmsubj.toyworld.probe.reader import PLACES, logits, make_network, predict
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, numbers
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.typing import Array, Float, Int, Leaf, Params


@flax.struct.dataclass
class LabeledBatch(Rows):
    """Pictures with labels."""

    pixels: Leaf
    """[b, size, size, 3] uint8."""
    labels: Leaf
    """[b, attributes] int32: numbers of the values, in the order of `ATTRIBUTES`."""


@dataclass(frozen=True)
class LabeledReader:
    """Renders pictures."""

    config: DataConfig

    def augmentation(self) -> str:
        """Returns an empty string, because pictures are augmented on the device."""
        return ""

    def empty(self, bucket: Bucket, rows: int) -> LabeledBatch:
        """Returns a batch of uninitialized rows."""
        return LabeledBatch(
            example=np.empty(rows, np.int32),
            skipped=np.empty(rows, np.int32),
            pixels=np.empty((rows, bucket.height, bucket.width, 3), np.uint8),
            labels=np.empty((rows, len(ATTRIBUTES)), np.int32),
        )

    def read(self, picture: Picture, bucket: Bucket, rng: np.random.Generator, batch: LabeledBatch, row: int) -> None:
        """Writes the picture and its labels to `row`."""
        batch.pixels[row] = picture.render(bucket.height)
        batch.labels[row] = numbers(picture.identity, picture.scene)


@dataclass(frozen=True)
class ProbeComponent:
    """The probe; see `pretrain.component.Component`."""

    config: ProbePretrainConfig
    size: int

    name = "probe"
    bins: ClassVar[Mapping[str, BinnedMetrics]] = {"right": BinnedMetrics("accuracy", tuple(ATTRIBUTES))}
    meanings: ClassVar[Mapping[str, str]] = {
        **{f"probe/{name}": f"How often the probe reads {name} right in real pictures" for name in ATTRIBUTES},
        "probe/least": "of the attribute that it reads worst",
        "probe/mean": "mean over attributes",
    }

    @property
    def network(self) -> Probe:
        """The probe's network."""
        return make_network(self.config.network, self.size)

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters."""
        return {"probe": init_params(self.network, key)}

    def frozen(self) -> Params:
        """Returns no parameters, because the probe builds on no other component."""
        return {}

    def source(self, pictures: PictureSource, threads: int) -> PictureSource:
        """Returns the pictures."""
        return pictures

    def reader(self, data: DataConfig) -> LabeledReader:
        """Returns a reader of labeled pictures."""
        return LabeledReader(data)

    def losses(
        self, params: Params, frozen: Params, batch: LabeledBatch, key: Array
    ) -> tuple[Float[Array, " b"], dict[str, Float[Array, "two n"]]]:
        """Returns the cross entropy, mean over attributes, of pictures augmented to be as imperfect as a model's."""
        images = self._augment(from_uint8(batch.pixels), key)
        found = logits(self.network, params["probe"], images, self._places(batch.labels, key))
        entropies, right = [], []
        for answer, label in zip(found, batch.labels.T, strict=True):
            entropies.append(-jnp.take_along_axis(jax.nn.log_softmax(answer), label[:, None], axis=1)[:, 0])
            right.append(jnp.sum(jnp.argmax(answer, axis=1) == label))
        counts = jnp.full(len(right), len(batch.labels))
        return jnp.stack(entropies).mean(axis=0), {"right": jnp.stack([jnp.stack(right), counts]).astype(jnp.float32)}

    def evaluate(self, params: Params, frozen: Params) -> Iterator[tuple[str, float | np.ndarray]]:
        """Evaluates the accuracy of each attribute on held-out pictures."""
        source = PictureSource(Split.TEST, self.config.num_eval_examples, self.size)
        predict_batch, right = jax.jit(partial(predict, self.network)), np.zeros(len(ATTRIBUTES))
        for first in range(0, len(source), self.config.batch_size):
            pictures = [source[i] for i in range(first, min(first + self.config.batch_size, len(source)))]
            read = predict_batch(params["probe"], np.stack([picture.render(self.size) for picture in pictures]))
            right += (read == np.stack([numbers(each.identity, each.scene) for each in pictures])).sum(axis=0)
        shares = right / len(source)
        for name, share in zip(ATTRIBUTES, shares, strict=True):
            yield f"probe/{name}", float(share)
        yield "probe/least", float(shares.min())
        yield "probe/mean", float(shares.mean())

    def _places(self, labels: Int[Array, "b attributes"], key: Array) -> Float[Array, "b 3"]:
        """Returns position and size of the subject with jitter, because generated subjects are not exactly placed."""
        order, jitter = list(ATTRIBUTES), self.config.jitter * jax.random.uniform(key, (3, len(labels)), minval=-1.0)
        column, row, size = (
            jnp.asarray(tuple(values.values()))[labels[:, order.index(name)]] for name, values in PLACES.items()
        )
        return jnp.stack([column + size * jitter[0], row + size * jitter[1], size * (1.0 + jitter[2])], axis=1)

    def _augment(self, images: Float[Array, "b height width c"], key: Array) -> Float[Array, "b height width c"]:
        """Blurs, brightens and adds noise, each by a random amount, to imitate the VAE and few sampling steps."""
        amount_key, noise_key = jax.random.split(key)
        soft, brightness, noise = jax.random.uniform(amount_key, (3, len(images), 1, 1, 1))
        images += soft * (_blur(images) - images)
        images = (images + 1.0) * (1.0 + self.config.brightness * (2.0 * brightness - 1.0)) - 1.0
        bits = jax.random.bits(noise_key, images.shape, jnp.uint8)  # uniform: normal noise costs as much as a glimpse
        return images + self.config.noise * noise * (bits.astype(jnp.float32) / 73.9 - 1.725)


def _blur(images: Float[Array, "b height width c"]) -> Float[Array, "b height width c"]:
    """Blurs with weights of 1, 2, 1 vertically and horizontally."""
    down = jnp.pad(images, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    images = 0.25 * down[:, :-2] + 0.5 * images + 0.25 * down[:, 2:]
    across = jnp.pad(images, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
    return 0.25 * across[:, :, :-2] + 0.5 * images + 0.25 * across[:, :, 2:]
