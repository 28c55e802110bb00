"""The splash attention kernel, interpreted and compared with plain attention, and compiled for TPUs."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.models.layers import Compute, stack
from mllmsubj.ops.attention import attend
from mllmsubj.ops.splash import LANES, LARGEST_BLOCK, fits, padded_length
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.parallel.target import compiling_for

B, H, K = 2, 2, 128


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def inputs(queries, keys):
    return random(B, queries, H, K, seed=1), random(B, keys, H, K, seed=2), random(B, keys, H, K, seed=3)


def value_and_gradients(implementation, q, k, v, mask):
    weight = random(*q.shape, seed=4)

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v, mask, implementation=implementation) * weight)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(q, k, v)


@pytest.mark.parametrize(("queries", "keys", "masked"), [(128, 128, False), (70, 70, True), (40, 200, True)])
def test_splash_matches_xla(queries, keys, masked):
    """The values and gradients of the interpreted kernel are those of plain attention."""
    q, k, v = inputs(queries, keys)
    mask = jnp.asarray(np.random.default_rng(5).random((B, 1, 1, keys)) > 0.3) if masked else None
    ours, plain = (value_and_gradients(name, q, k, v, mask) for name in ("splash", "xla"))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_splash_fully_masked():
    """Queries without keys have finite outputs."""
    q, k, v = inputs(16, 16)
    mask = jnp.zeros((B, 1, 1, 16), bool).at[0].set(True)
    assert jnp.isfinite(attend(q, k, v, mask, implementation="splash")).all()


def test_splash_sharded():
    mesh = make_mesh(2, 2, 2)
    q, k, v = (random(4, 64, H, K, seed=i) for i in range(3))
    mask = jnp.asarray(np.random.default_rng(6).random((4, 1, 1, 64)) > 0.3)
    whole = attend(q, k, v, mask, implementation="xla")
    with jax.set_mesh(mesh):
        parts = jax.jit(lambda *x: attend(*x, implementation="splash"))(q, k, v, mask)
    np.testing.assert_allclose(parts, whole, atol=2e-5)


@pytest.mark.parametrize(
    ("heads", "channels", "mask", "causal"),
    [(1, 128, None, False), (2, 64, None, False), (2, 128, (B, 1, 16, 16), False), (2, 128, None, True)],
)
def test_splash_unsupported(heads, channels, mask, causal):
    """Shapes and masks that the kernel does not support use plain attention."""
    q = random(B, 16, 2, channels)
    k = random(B, 16, heads, channels, seed=1)
    allowed = None if mask is None else jnp.ones(mask, bool)
    assert not fits(q, k, allowed, causal)
    ours, plain = (attend(q, k, k, allowed, causal=causal, implementation=name) for name in ("splash", "xla"))
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("tokens", [1, 128, 1100, 2570, 4618, 9216])
def test_padded_length(tokens):
    """Lengths are padded to whole lanes, by an eighth at most, and are divisible by a block size."""
    length = padded_length(tokens)
    assert length % LANES == 0
    assert tokens <= length <= max(LANES, 1.125 * (tokens + LANES))
    assert any(length % size == 0 for size in range(min(length, LARGEST_BLOCK), 0, -LANES))


@pytest.mark.parametrize(("tokens", "channels"), [(2570, 128), (4096, 512)])
def test_attend_tpu_memory(tokens, channels):
    """Compiled for a TPU, attention and its gradient need less memory than the scores of one image."""
    pytest.importorskip("libtpu", reason="compiles for TPUs")
    from mllmsubj.parallel.topologies import compile_there, find_slice

    mesh = make_mesh(1, 4, 1, list(find_slice("v5e:2x2").devices))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    heads = 3072 // channels
    x = jax.ShapeDtypeStruct((4, tokens, heads, channels), jnp.bfloat16, sharding=spec)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), compiling_for("tpu"):
        step = jax.jit(jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v).astype(jnp.float32)), argnums=(0, 1, 2)))
        memory = compile_there(step.lower(x, x, x)).memory_analysis()
    assert memory.temp_size_in_bytes < 4 * heads * tokens * tokens  # the scores of one image, in float32


class Looking(nn.Module):
    """A layer of attention alone."""

    @nn.compact
    def __call__(self, x, _):
        return x + attend(x, x, x, implementation="splash"), None


def test_splash_remat():
    """With rematerialization, the backward pass runs the gradient kernel without the forward kernel again."""
    pytest.importorskip("libtpu", reason="compiles for TPUs")
    from mllmsubj.parallel.topologies import compile_there, find_slice

    mesh = make_mesh(1, 1, 1, list(find_slice("v5e:2x2").devices)[:1])
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((1, 128, H, K), jnp.bfloat16, sharding=whole)
    layers = stack(Looking, 2, Compute(remat=True))()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), compiling_for("tpu"):
        step = jax.jit(jax.grad(lambda x: jnp.sum(layers.apply({}, x, None)[0].astype(jnp.float32))))
        program = compile_there(step.lower(x)).as_text()
    kernels = re.findall(r"%splash_mha_(fwd|dkv)[\w.]* = .*custom-call\(", program)
    assert sorted(kernels) == ["dkv", "fwd"]
