import jax
import numpy as np
import pytest
from jax.sharding import AxisType

pytest.importorskip("libtpu", reason="compiles for TPUs")

from mllmsubj.parallel.topologies import find_slice


@pytest.fixture(scope="session")
def mesh():
    """A mesh of four TPU chips that are not attached."""
    devices = np.array(find_slice("v5e:2x2").devices)
    return jax.sharding.Mesh(devices, ("fsdp",), axis_types=(AxisType.Auto,))
