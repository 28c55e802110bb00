"""The outputs of compiled programs."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mllmsubj.models.subject import Features
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.train.features import Encoded
from mllmsubj.train.programs import encoded_by


def test_encoded_by():
    """Shapes, dtypes and shardings come from the compiled program, without tracing the encoders again."""
    sharding = NamedSharding(make_mesh(data=2, devices=jax.devices()[:2]), PartitionSpec("data"))
    traced = []

    def encode(x):
        traced.append(x)
        features = Features(x, x, x, x, x, x, None, reference_sizes=((1, 2),))
        return Encoded(features, x.astype(jnp.bfloat16), x, x, x, grid=(3, 4))

    shape = jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=sharding)
    found = encoded_by(jax.jit(encode, out_shardings=sharding).lower(shape).compile())
    assert (found.grid, found.features.reference_sizes, found.features.reference_mask) == ((3, 4), ((1, 2),), None)
    leaf = found.target_mean
    assert (leaf.shape, leaf.dtype, leaf.sharding) == ((4, 3), jnp.bfloat16, sharding)
    assert len(traced) == 1
