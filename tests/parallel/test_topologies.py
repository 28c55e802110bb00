import pytest

from mllmsubj.errors import UserError
from mllmsubj.parallel.topologies import KNOWN, find_slice


@pytest.mark.parametrize(
    ("name", "chip", "chips", "devices"),
    [
        ("v4:2x2x2", "v4", 8, 8),
        ("v5e:1x1", "v5e", 1, 1),
        ("v5e:16x16", "v5e", 256, 256),
        ("v5p:2x4x4", "v5p", 32, 32),
        ("v6e:4x8", "v6e", 32, 32),
        ("tpu7x:2x2x1", "tpu7x", 4, 8),
    ],
)
def test_find_slice(name, chip, chips, devices):
    found = find_slice(name)
    assert (found.chip.name, found.chips, len(found.devices)) == (chip, chips, devices)


@pytest.mark.parametrize("name", [f"{kind}:{sides}" for kind, shapes in KNOWN.items() for sides in shapes[:4]])
def test_find_slice_known(name):
    """libtpu supports the known topologies."""
    assert find_slice(name).chips >= 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5p:4xx4", "unknown topology 'v5p:4xx4' (did you mean 'v5p:4x"),
        ("v5:2x2", "unknown topology 'v5:2x2'"),
        ("v5p-64", "unknown topology 'v5p-64'"),
        ("v5e:3x3", "libtpu does not support the topology 'v5e:3x3' (did you mean"),
    ],
)
def test_find_slice_unknown(name, words):
    """The error suggests the nearest topology, in one line."""
    with pytest.raises(UserError, match="topology") as caught:
        find_slice(name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
