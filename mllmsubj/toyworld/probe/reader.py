"""Inference with the probe: from pictures to the values of their attributes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mllmsubj.checkpoints import components
from mllmsubj.config.load import typed
from mllmsubj.errors import UserError
from mllmsubj.models.layers import abstract_params
from mllmsubj.ops.pixels import from_uint8
from mllmsubj.toyworld.probe.network import Probe, ProbeConfig
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, IDENTITY_ATTRIBUTES
from mllmsubj.toyworld.world.render import COLUMN, ROW, SIZE
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Array, Float, Int, Params

BATCH_SIZE = 32
"""Batch size."""
NAME = "probe"
"""Name of the probe's component."""
LOCAL_ATTRIBUTES = (*IDENTITY_ATTRIBUTES, "facing", "tilt")
"""Attributes that the local glimpse predicts."""
PLACES: Mapping[str, Mapping[Any, float]] = {"column": COLUMN, "row": ROW, "size": SIZE}
"""Attributes that determine the subject's position and size -> value -> fraction of the picture's side."""


def make_network(config: ProbeConfig, size: int) -> Probe:
    """Returns the probe for pictures of `size` pixels; raises UserError if its cells do not divide picture or crop."""
    if size % config.whole.cell or config.cut % config.close.cell:
        raise UserError(
            f"pictures of {size} pixels, {config.cut} close, do not divide into the probe's cells of "
            f"{config.whole.cell} and {config.close.cell}"
        )
    counts = {name: len(values) for name, values in ATTRIBUTES.items()}
    return Probe(config, size, counts, LOCAL_ATTRIBUTES, {name: tuple(at.values()) for name, at in PLACES.items()})


def logits(
    network: Probe, params: Params, images: Float[Array, "b height width c"], places: Float[Array, "b 3"] | None = None
) -> tuple[Float[Array, "b _"], ...]:
    """Returns the logits of each attribute, in the order of `ATTRIBUTES`; images in [−1, 1], `places` as in `Probe`."""
    found = cast(dict[str, Array], network.apply({"params": params}, images, places))
    return tuple(found[name] for name in ATTRIBUTES)


def predict(network: Probe, params: Params, pixels: Array) -> Int[Array, "b attributes"]:
    """Returns the indices of the predicted values, in the order of `ATTRIBUTES`, for 8-bit pictures."""
    found = logits(network, params, from_uint8(jnp.asarray(pixels)))
    return jnp.stack([jnp.argmax(each, axis=1) for each in found], axis=1).astype(jnp.int32)


@dataclass(frozen=True)
class ProbeReader:
    """Trained probe."""

    network: Probe
    params: Params

    @classmethod
    def load(cls, folder: Path) -> "ProbeReader":
        """Loads the component in `folder` that `mllmsubj pretrain --component=probe` wrote.

        Raises UserError if it does not exist.
        """
        if not components.path(folder, NAME).is_file():
            raise UserError(
                f"the probe is not there yet ({components.path(folder, NAME)}); make it with mllmsubj pretrain "
                f"--config=tiny --component=probe --workdir=DIR and name it with --probe=DIR"
            )
        leaves = {key.removeprefix(f"{NAME}/"): leaf for key, leaf in components.read(folder, (NAME,)).items()}
        config = typed(
            ProbeConfig, components.provenance(folder, NAME)["pretrain"]["network"], "pretrain.probe.network"
        )
        network = make_network(config, config.whole.cell * leaves["whole/position"].shape[0])
        expected = {path: shape.shape for path, shape in flatten(abstract_params(network)).items()}
        if expected != {path: leaf.shape for path, leaf in leaves.items()}:
            raise UserError(f"the probe in {folder} is not one of this version's; make it again")
        return cls(network, unflatten(leaves))

    @property
    def size(self) -> int:
        """Side in pixels of the pictures that the network takes."""
        return self.network.size

    @cached_property
    def _answers(self) -> Callable[[Params, Array], Any]:
        return jax.jit(lambda params, pixels: predict(self.network, params, pixels))

    def __call__(self, pictures: UInt8[np.ndarray, "n height width 3"]) -> Int[np.ndarray, "n attributes"]:
        """Returns the indices of the predicted values (see `predict`); pictures of other sizes are resized."""
        found = []
        for first in range(0, len(pictures), BATCH_SIZE):
            part = [self._resized(picture) for picture in pictures[first : first + BATCH_SIZE]]
            padded = np.stack(part + part[:1] * (BATCH_SIZE - len(part)))  # one shape, so that it compiles once
            found.append(np.asarray(self._answers(self.params, padded))[: len(part)])
        return np.concatenate(found)

    def _resized(self, picture: np.ndarray) -> np.ndarray:
        if picture.shape[:2] == (self.size, self.size):
            return picture
        return np.asarray(Image.fromarray(picture).resize((self.size, self.size), Image.Resampling.LANCZOS))
