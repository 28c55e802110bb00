import numpy as np
import pytest

from mllmsubj.data.example import Unreadable
from mllmsubj.data.sources.indexing import check_index, make_index, read_sizes


@pytest.mark.parametrize("count", [0, 1, 255, 256, 1000])
def test_look_order_and_unreadable(count):
    """Sizes are in the order of the examples; those of unreadable ones are zero."""

    def size(number):
        if number % 7 == 3:
            raise Unreadable("no picture")
        return number + 1, 2

    assert read_sizes(size, count) == [(0, 0) if number % 7 == 3 else (number + 1, 2) for number in range(count)]


def test_make_index():
    """Missing scores are NaN; an index may be empty."""
    empty = make_index([], [], [])
    assert empty.width.shape == empty.height.shape == empty.references.shape == (0,)
    index = make_index([(4, 3), (0, 0)], [1, 2], [{"dino": 0.5}, {"clip": 1.0}])
    assert (index.width.tolist(), index.height.tolist(), index.references.tolist()) == ([4, 0], [3, 0], [1, 2])
    np.testing.assert_array_equal(index.scores["dino"], np.float32([0.5, np.nan]))
    np.testing.assert_array_equal(index.scores["clip"], np.float32([np.nan, 1]))


def test_within_bounds():
    assert check_index(4, 5) == 4
    for number in (-1, 5):
        with pytest.raises(IndexError, match=f"index {number} is outside of the 5 examples"):
            check_index(number, 5)
