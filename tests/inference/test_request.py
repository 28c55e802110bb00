"""`RequestReader`: requests as arrays."""

import numpy as np
import pytest
from PIL import Image

from mllmsubj.checkpoints.format import TINY, read_config
from mllmsubj.config.schema import Experiment
from mllmsubj.inference.request import RequestReader


@pytest.mark.parametrize("count", [1, 2])
def test_request_reader_range(count):
    """References are in [-1, 1], as in training: black is -1 and white is 1, for one or several references."""
    reader = RequestReader(Experiment.from_config(read_config(TINY)), TINY)
    for color, value in (("black", -1.0), ("white", 1.0)):
        inputs = reader([Image.new("RGB", (64, 64), color)] * count, "a mug", 1, 0)
        assert len(inputs.references) == count
        for reference in inputs.references:
            np.testing.assert_array_equal(reference, np.full(reference.shape, value, np.float32))
