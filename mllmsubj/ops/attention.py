"""Scaled dot-product attention behind one switch."""

from typing import Any, Literal

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
    it keeps for all heads.
    """
    b, s, h, k = query.shape
    z, per_group = key.shape[1], h // key.shape[2]
    if causal:
        lower = jnp.tril(jnp.ones((s, z), bool))[None, None]
        mask = lower if mask is None else mask & lower
    if mask is not None:
        mask = jnp.broadcast_to(mask, (b, h, *mask.shape[2:])).reshape(b * h, *mask.shape[2:])
    q = rearrange(query * k**-0.5, "b s h k -> (b h) s k")
    k_, v = (repeat(x, "b z g k -> (b g p) z k", p=per_group) for x in (key, value))
    return rearrange(_heads(q, k_, v, mask), "(b h) s k -> b s h k", b=b)


@jax.custom_vjp
def _heads(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """softmax(q kᵀ) v of each head; its gradient makes the scores again, in the cache, instead of keeping them."""
    return _heads_forward(q, k, v, mask)[0]


def _heads_forward(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, tuple[Array | None, ...]]:
    def one(head: tuple[Any, ...]) -> tuple[Array, Array]:
        q, k, v, mask = head
        scores = _scores(q, k, mask)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        return (jnp.matmul(weights.astype(v.dtype), v) / total).astype(v.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(one, (q, k, v, mask))
    return out, (q, k, v, mask, out, log_total)


def _heads_backward(kept: tuple[Array | None, ...], d_out: Array) -> tuple[Array | None, ...]:
    def one(head: tuple[Any, ...]) -> tuple[Array, Array, Array]:
        q, k, v, mask, out, log_total, d_out = head
        weights = jnp.exp(_scores(q, k, mask) - log_total)
        along = jnp.sum((d_out * out).astype(jnp.float32), axis=-1, keepdims=True)
        d_scores = (weights * (jnp.matmul(d_out, v.T) - along)).astype(q.dtype)
        return jnp.matmul(d_scores, k), jnp.matmul(d_scores.T, q), jnp.matmul(weights.astype(v.dtype).T, d_out)

    return *jax.lax.map(one, (*kept, d_out)), None


_heads.defvjp(_heads_forward, _heads_backward)


def _scores(q: Array, k: Array, mask: Array | None) -> Array:
    scores = jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
