"""8-bit pixels and the VAE's value range."""

import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.ops.pixels import from_uint8, to_uint8


@pytest.mark.parametrize("xp", [np, jnp])
def test_uint8_round_trip(xp):
    pixels = xp.arange(256, dtype=xp.uint8)
    images = from_uint8(pixels)
    assert isinstance(images, type(pixels))
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[np.array([0, 255])], [-1.0, 1.0])
    np.testing.assert_array_equal(to_uint8(images), pixels)


def test_to_uint8_clips():
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 0.0, 3.0])), [0, 128, 255])
