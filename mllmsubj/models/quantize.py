"""Frozen weights in 8 bits: half of bfloat16's memory, a scale for each output channel, products in the compute dtype.

y = (x · W8) ⊙ s: the scale of an output channel is one factor of what comes out, so `Dense` multiplies afterwards and
never holds the wide kernel.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp

from mllmsubj.models.lora import is_lora
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Array, Params

_PROJECTIONS = re.compile(r"(mllm|transformer)/(?!.*(patch_embedding|lm_head)).*/kernel")
"""What is quantised: all projections of the MLLM and of the DiT. The VAE's convolutions and CLIP stay, 0.2 B of 20 B:
libtpu 0.0.42 overflows its stack where it compiles CLIP's for one prompt."""
_STACKED_BEHIND = re.compile(r"transformer/modulation/(double_img|double_txt|single)/kernel")
"""Kernels [in, layers, out]; all others are [*layers, in, out]."""


def quantize_frozen(params: Params) -> Params:
    """The same parameters, every frozen projection's `kernel` as int8 with a `kernel_scale` [*layers, out] beside it.

    Symmetric, scale = largest magnitude of an output channel / 127.5, by qwix. One kernel is wide at a time.
    """
    leaves: Params = {}
    for path, leaf in flatten(params).items():
        if _PROJECTIONS.fullmatch(path) and not is_lora(path):
            behind = _STACKED_BEHIND.fullmatch(path) is not None
            leaves[path], leaves[f"{path}_scale"] = _quantize(leaf, 0 if behind else leaf.ndim - 2)
        else:
            leaves[path] = leaf
    return unflatten(leaves)


@partial(jax.jit, static_argnums=1)
def _quantize(kernel: Array, inputs: int) -> tuple[Array, Array]:
    """`inputs`: the axis that products sum over."""
    import qwix  # half a second: only where something is quantised

    channels = [axis for axis in range(kernel.ndim) if axis != inputs]
    found = qwix.quantize(kernel, jnp.int8, channelwise_axes=channels, scale_dtype=jnp.float32)
    return found.qvalue, jnp.squeeze(found.scale, inputs)
