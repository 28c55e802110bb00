"""Rows of a batch on the mesh of one process; several processes are tested in tests/train."""

import jax
import numpy as np
import pytest

from mllmsubj.parallel.multihost import make_global_batch, process_rows
from mllmsubj.parallel.sharding import make_mesh


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_make_global_batch_round_trip(axes):
    """A process reads each row once; devices along `tensor` hold the same rows."""
    mesh, batch = make_mesh(*axes), {"x": np.arange(16 * 3).reshape(16, 3), "n": np.arange(16)}
    rows = process_rows(16, mesh)
    np.testing.assert_array_equal(rows, np.arange(16))
    found = make_global_batch(batch, rows, 16, mesh)
    jax.tree.map(np.testing.assert_array_equal, found, batch)
    assert {shard.data.shape[0] for shard in found["n"].addressable_shards} == {16 // (axes[0] * axes[1])}
