"""Scaled dot-product attention with a choice of implementations."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from mllmsubj.parallel.sharding import activation_spec
from mllmsubj.parallel.target import platform
from mllmsubj.typing import Array, Bool, Float

Implementation = Literal["auto", "xla", "cudnn", "heads", "splash"]
"""Attention implementation: a library's kernel, or "heads", which computes a few heads at a time. "auto" is "heads"
on CPUs from `SHORT` keys on, "splash" on TPUs from `LONG` keys on, else "xla".
"splash" falls back to "xla" if it does not apply."""

SHORT = 32
"""Number of keys below which the products of one head are too small for a loop iteration."""

LONG = 1024
"""Number of keys from which on it pays not to store the scores."""

RESIDUALS = "attention"
"""Name, for `jax.checkpoint_policies`, of the residuals of a kernel: small compared with the work to recompute them."""

CACHE = 2**22
"""Maximum bytes of scores in a loop iteration: the second-level caches of two cores."""


def attend(
    query: Float[Array, "b s h k"],
    key: Float[Array, "b z g k"],
    value: Float[Array, "b z g k"],
    mask: Bool[Array, "#b #h #s z"] | None = None,
    *,
    causal: bool = False,
    implementation: Implementation = "auto",
) -> Float[Array, "b s h k"]:
    """Returns softmax(Q Kᵀ / √k) V with the softmax in float32; consecutive query heads share a key/value head.

    `mask` is True where a query may attend to a key. Rows that are masked entirely give finite values.
    """
    if implementation == "auto":
        implementation = _chosen(key.shape[1])
    if implementation == "heads":
        return _few_heads_at_a_time(query, key, value, mask, causal)
    if implementation == "splash":
        from mllmsubj.ops import splash  # imported here, since importing Pallas takes a second

        if splash.fits(query, key, mask, causal):
            split = activation_spec(query.shape, "batch", "seq", "heads", "embed")
            interpret = platform() != "tpu"
            return splash.splash_attend(
                query, key, value, mask, split=split, interpret=interpret, residual_name=RESIDUALS
            )
    library: Literal["xla", "cudnn"] = "cudnn" if implementation == "cudnn" else "xla"
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation=library)


def _chosen(keys: int) -> Implementation:
    if platform() == "cpu" and keys >= SHORT:
        return "heads"
    return "splash" if platform() == "tpu" and keys >= LONG else "xla"


def _few_heads_at_a_time(query: Array, key: Array, value: Array, mask: Array | None, causal: bool) -> Array:
    """Computes attention by plain matrix products, with the scores of few heads in memory at a time.

    On a CPU this is faster than `jax.nn.dot_product_attention`, which transposes for batched products and stores the
    scores of all heads.
    """
    b, s, h, k = query.shape
    z, per_group = key.shape[1], h // key.shape[2]
    few = max(n for n in range(1, b * h + 1) if b * h % n == 0 and (n == 1 or 4 * n * s * z <= CACHE))
    if causal:
        lower = jnp.tril(jnp.ones((s, z), bool))[None, None]
        mask = lower if mask is None else mask & lower
    if mask is not None:
        mask = jnp.broadcast_to(mask, (b, h, *mask.shape[2:])).reshape(-1, few, *mask.shape[2:])
    q = rearrange(query * k**-0.5, "b s h k -> (b h) s k").reshape(-1, few, s, k)
    k_, v = (repeat(x, "b z g k -> (b g p) z k", p=per_group).reshape(-1, few, z, k) for x in (key, value))
    return rearrange(_heads(q, k_, v, mask).reshape(b, h, s, k), "b h s k -> b s h k")


@jax.custom_vjp
def _heads(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """Returns softmax(q kᵀ) v, axes [iterations, heads per iteration, s, k]; its gradient recomputes the scores."""
    return _heads_forward(q, k, v, mask)[0]


def _heads_forward(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, tuple[Array | None, ...]]:
    def iteration(heads: tuple[Any, ...]) -> tuple[Array, Array]:
        q, k, v, mask = heads
        scores = _scores(q, k, mask)
        top = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        return (jnp.matmul(weights.astype(v.dtype), v) / total).astype(v.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(iteration, (q, k, v, mask))
    return out, (q, k, v, mask, out, log_total)


def _heads_backward(kept: tuple[Array | None, ...], d_out: Array) -> tuple[Array | None, ...]:
    def iteration(heads: tuple[Any, ...]) -> tuple[Array, Array, Array]:
        q, k, v, mask, out, log_total, d_out = heads
        # Scores are [z, s], keys first, so that two of the three products below need no transposed copy of them.
        weights = jnp.exp(_scores(k, q, None if mask is None else mask.mT) - log_total.mT)
        along = jnp.sum((d_out * out).astype(jnp.float32), axis=-1, keepdims=True)
        d_scores = (weights * (jnp.matmul(v, d_out.mT) - along.mT)).astype(q.dtype)
        return jnp.matmul(d_scores.mT, k), jnp.matmul(d_scores, q), jnp.matmul(weights.astype(v.dtype), d_out)

    return *jax.lax.map(iteration, (*kept, d_out)), None


_heads.defvjp(_heads_forward, _heads_backward)


def _scores(q: Array, k: Array, mask: Array | None) -> Array:
    scores = jnp.matmul(q, k.mT, preferred_element_type=jnp.float32)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
