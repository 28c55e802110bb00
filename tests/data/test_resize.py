import numpy as np
import pytest
import skimage.data
from PIL import Image

from mllmsubj.data import resize as module
from mllmsubj.data.resize import resize

FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
CAT = skimage.data.chelsea()
SIZES = {
    "smaller": ((100, 100), (88, 88)),
    "larger": ((60, 50), (130, 170)),
    "wide": ((40, 300), (88, 88)),
    "tall": ((300, 40), (88, 88)),
    "tall to wide": ((200, 30), (30, 200)),
    "one side": ((77, 64), (77, 40)),
    "the other side": ((77, 64), (40, 64)),
    "much smaller": ((300, 451), (20, 30)),
    "fewer than the filter's": ((3, 2), (40, 50)),
    "one": ((1, 1), (5, 7)),
    "to one": ((90, 60), (1, 1)),
}


def by_pillow(pixels, size, filter):
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], filter))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize(("old", "size"), SIZES.values(), ids=SIZES)
def test_bytes_are_pillows(old, size, filter):
    rng = np.random.default_rng(0)
    noise = rng.integers(256, size=(*old, 3), dtype=np.uint8)
    extremes = rng.integers(2, size=(*old, 3), dtype=np.uint8) * np.uint8(255)  # sums beyond 0 and 255
    photo = CAT[: old[0], : old[1]]
    for pixels in (noise, extremes, photo, noise[:, ::-1]):
        np.testing.assert_array_equal(resize(pixels, size, filter), by_pillow(pixels, size, filter))


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("old", [(128, 128), (128, 160), (160, 96)])
def test_usual_sizes_are_not_left_to_pillow(monkeypatch, old, filter):
    pixels, size = np.ascontiguousarray(CAT[: old[0], : old[1]]), (112, 112)
    want = by_pillow(pixels, size, filter)
    assert module._along_rows_first(old, size, filter) is not None
    monkeypatch.setattr(module, "_by_pillow", None)
    np.testing.assert_array_equal(resize(pixels, size, filter), want)


def test_what_is_not_pillows_is_left_to_pillow(monkeypatch):
    """Another Pillow may sum in another way."""
    sums = module._by_sums
    monkeypatch.setattr(module, "_by_sums", lambda *each: sums(*each) ^ 1)
    size, filter = (61, 67), FILTERS[0]
    np.testing.assert_array_equal(resize(CAT, size, filter), by_pillow(CAT, size, filter))


def test_the_same_size_is_the_same_array():
    assert resize(CAT, CAT.shape[:2], FILTERS[0]) is CAT
