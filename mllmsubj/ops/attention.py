"""Scaled dot-product attention behind one switch."""

from typing import Literal

import jax

from mllmsubj.typing import Array, Bool, Float

Implementation = Literal["xla", "cudnn"]


def attend(
    query: Float[Array, "b s h k"],
    key: Float[Array, "b z g k"],
    value: Float[Array, "b z g k"],
    mask: Bool[Array, "#b #h #s z"] | None = None,
    *,
    causal: bool = False,
    implementation: Implementation = "xla",
) -> Float[Array, "b s h k"]:
    """softmax(Q Kᵀ / √k) V, softmax in float32; `g` key/value heads serve `h` query heads in order.

    `mask` is True where a query may look at a key. A row that may look at nothing gives finite values.
    """
    return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation=implementation)
