"""Scaled dot-product attention behind one switch."""

from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from mllmsubj.typing import Array, Bool, Float

Implementation = Literal["auto", "xla", "cudnn", "heads"]
"""A library's kernel, or "heads" (one after the other); "auto" is "xla", or "heads" on CPUs from `SHORT` keys on."""

SHORT = 32
"""Keys below which one head's products are too small for a turn of a loop."""


def attend(
    query: Float[Array, "b s h k"],
    key: Float[Array, "b z g k"],
    value: Float[Array, "b z g k"],
    mask: Bool[Array, "#b #h #s z"] | None = None,
    *,
    causal: bool = False,
    implementation: Implementation = "auto",
) -> Float[Array, "b s h k"]:
    """softmax(Q Kᵀ / √k) V, softmax in float32; `g` key/value heads serve `h` query heads in order.

    `mask` is True where a query may look at a key. A row that may look at nothing gives finite values.
    """
    if implementation == "auto":
        implementation = "heads" if jax.default_backend() == "cpu" and key.shape[1] >= SHORT else "xla"
    if implementation == "heads":
        return _one_head_at_a_time(query, key, value, mask, causal)
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation=implementation)


def _one_head_at_a_time(query: Array, key: Array, value: Array, mask: Array | None, causal: bool) -> Array:
    """Plain matrix products, the scores of one head in memory at a time.

    On a CPU this is faster than `jax.nn.dot_product_attention`, whose batched products it transposes and whose scores
    it keeps for all heads; so the backward pass makes a head's scores again, in the cache, where keeping them would
    write and read memory.
    """
    b, s, h, k = query.shape
    z, per_group = key.shape[1], h // key.shape[2]
    if causal:
        lower = jnp.tril(jnp.ones((s, z), bool))[None, None]
        mask = lower if mask is None else mask & lower
    heads = [rearrange(query, "b s h k -> (b h) s k")]
    heads += [repeat(x, "b z g k -> (b g p) z k", p=per_group) for x in (key, value)]
    if mask is not None:
        heads.append(jnp.broadcast_to(mask, (b, h, *mask.shape[2:])).reshape(b * h, *mask.shape[2:]))

    @jax.checkpoint
    def one(parts: tuple[Array, ...]) -> Array:
        q, k_, v, *allowed = parts
        scores = jnp.matmul(q * k**-0.5, k_.T, preferred_element_type=jnp.float32)
        if allowed:
            scores = jnp.where(allowed[0], scores, jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        total = weights.sum(axis=-1, keepdims=True)
        return (jnp.matmul(weights.astype(v.dtype), v) / total).astype(v.dtype)

    return rearrange(jax.lax.map(one, tuple(heads)), "(b h) s k -> b s h k", b=b)
