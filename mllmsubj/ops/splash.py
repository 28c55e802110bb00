"""JAX's splash attention, a TPU kernel that never stores the scores of a whole sequence."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from mllmsubj.typing import Array, Bool, Float

LANES = 128
"""Numbers of tokens and channels are multiples of it."""
LARGEST_BLOCK = 1024
"""Maximum tokens of a square block; the float32 scores of larger ones do not fit in a core's memory."""
LARGEST_TILE = 2**18
"""Maximum of tokens of a block times channels of a head, for the same reason."""


def fits(query: Array, key: Array, mask: Array | None, causal: bool) -> bool:
    """Returns whether the kernel applies: as many key heads as query heads, one mask for all queries, full lanes."""
    same_for_all = mask is None or mask.shape[1:3] == (1, 1)
    channels = query.shape[3]
    whole = channels % LANES == 0 and channels <= LARGEST_TILE // LANES
    return not causal and same_for_all and query.shape[2] == key.shape[2] and whole


def splash_attend(
    query: Float[Array, "b s h k"],
    key: Float[Array, "b z h k"],
    value: Float[Array, "b z h k"],
    mask: Bool[Array, "#b 1 1 z"] | None,
    *,
    split: PartitionSpec,
    interpret: bool = False,
    residual_name: str | None = None,
) -> Float[Array, "b s h k"]:
    """Computes `attend` with the kernel, sharded by `split` over batch (axis 0) and heads (axis 2).

    `interpret` emulates the kernel on any device, slowly. `residual_name`: name of the residuals for
    `jax.checkpoint_policies`. Sequences are padded to full lanes.
    """
    (b, s, _, k), z = query.shape, key.shape[1]
    key_mask = jnp.ones((b, z), bool) if mask is None else jnp.broadcast_to(mask[:, 0, 0], (b, z))
    q, k_, v = (_padded(x.swapaxes(1, 2), axis=2) for x in (query * k**-0.5, key, value))
    heads = PartitionSpec(split[0], split[2], None, None)

    def local_attention(q: Array, k: Array, v: Array, key_mask: Array) -> Array:
        kernel = _kernel(q, k, interpret, residual_name)
        segments = splash.SegmentIds(q=jnp.ones((len(q), q.shape[2]), jnp.int32), kv=jnp.asarray(key_mask, jnp.int32))
        return jax.vmap(kernel)(q, k, v, segments)

    if not jax.sharding.get_abstract_mesh().empty:
        # XLA cannot partition a kernel: without shard_map every device would compute everything.
        local_attention = jax.shard_map(
            local_attention,
            in_specs=(heads, heads, heads, PartitionSpec(split[0], None)),
            out_specs=heads,
            check_vma=False,
        )
    return local_attention(q, k_, v, _padded(key_mask, axis=1))[:, :, :s].swapaxes(1, 2).astype(query.dtype)


def _kernel(q: Array, k: Array, interpret: bool, residual_name: str | None) -> Callable[..., Array]:
    """Returns the kernel for queries and keys of these shapes, [b, h, s, k]."""
    (_, heads, queries, channels), keys = q.shape, k.shape[2]
    block_q = _block(queries, _limit(channels, LARGEST_BLOCK))
    block_k = _block(keys, _limit(channels, block_q))  # long: gradients of all queries are summed over blocks
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_kv_compute=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_kv_dkv_compute=block_k,
        use_fused_bwd_kernel=True,
    )
    mask = splash.MultiHeadMask([splash.FullMask((queries, keys))] * heads)
    return splash.make_splash_mha(
        mask,
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        residual_checkpoint_name=residual_name,
    )


def _limit(channels: int, across: int) -> int:
    """Returns the largest block for heads of `channels`, if the other side of the tile has `across` tokens."""
    return min(LARGEST_BLOCK**2 // across, LARGEST_TILE // channels) // LANES * LANES


def _block(tokens: int, limit: int = LARGEST_BLOCK) -> int:
    """Returns the largest block up to `limit` that divides `tokens`."""
    return max(size for size in range(LANES, limit + 1, LANES) if tokens % size == 0)


def _padded(x: Array, axis: int) -> Array:
    """Appends zeros to the tokens, up to `padded_length`."""
    width = [(0, 0)] * x.ndim
    width[axis] = (0, padded_length(x.shape[axis]) - x.shape[axis])
    return jnp.pad(x, width)


def padded_length(tokens: int) -> int:
    """Returns `tokens` rounded up to lanes, or up to an eighth more if this allows blocks above half the largest."""
    least = -(-tokens // LANES) * LANES
    candidates = range(least, least + least // 8 + 1, LANES)
    return next((length for length in candidates if 2 * _block(length) > LARGEST_BLOCK), least)
