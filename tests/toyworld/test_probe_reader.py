"""The probe on images of sizes other than its own."""

import numpy as np
import pytest

from mllmsubj.checkpoints.format import TINY
from mllmsubj.errors import UserError
from mllmsubj.toyworld import Split
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.probe.reader import ProbeReader, make_network


def test_probe_reader_resizes():
    """A large image gives the same readings as one of the probe's own size, except for blurred details."""
    probe = ProbeReader.load(TINY)
    pictures = PictureSource(Split.TEST, 4, probe.size)
    own, large = (np.stack([pictures[i].render(size) for i in range(4)]) for size in (probe.size, 2 * probe.size))
    assert np.mean(probe(large) == probe(own)) > 0.9


def test_make_network_size():
    probe = ProbeReader.load(TINY)
    with pytest.raises(UserError, match=r"pictures of 129 pixels, 64 close, do not divide into the probe's cells"):
        make_network(probe.network.config, 129)
