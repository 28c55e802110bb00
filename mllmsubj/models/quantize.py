"""Int8 quantization of frozen weights, with one scale per output channel and products in the compute dtype.

It takes half the memory of bfloat16. Since y = (x · W8) ⊙ s, `Dense` multiplies its output by the scales and never
stores the dequantized kernel.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp

from mllmsubj.models.lora import is_lora
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Array, Params

_PROJECTIONS = re.compile(r"(mllm|transformer)/(?!.*(patch_embedding|lm_head)).*/kernel")
"""Quantized kernels: all projections of the MLLM and of the DiT. The VAE's convolutions and CLIP (0.2 B of 20 B
parameters) are not: libtpu 0.0.42 overflows its stack when it compiles a quantized CLIP for one prompt."""
_LAYERS_IN_MIDDLE = re.compile(r"transformer/modulation/(double_img|double_txt|single)/kernel")
"""Kernels [in, layers, out]; all others are [*layers, in, out]."""


def quantize_frozen(params: Params) -> Params:
    """Returns the parameters with each frozen projection's `kernel` as int8 and a `kernel_scale` [*layers, out].

    Quantization is symmetric, scale = largest magnitude of an output channel / 127.5, by qwix, kernel by kernel.
    """
    leaves: Params = {}
    for path, leaf in flatten(params).items():
        if _PROJECTIONS.fullmatch(path) and not is_lora(path):
            layers_in_middle = _LAYERS_IN_MIDDLE.fullmatch(path) is not None
            leaves[path], leaves[f"{path}_scale"] = _quantize(leaf, 0 if layers_in_middle else leaf.ndim - 2)
        else:
            leaves[path] = leaf
    return unflatten(leaves)


@partial(jax.jit, static_argnums=1)
def _quantize(kernel: Array, inputs: int) -> tuple[Array, Array]:
    """Returns an int8 kernel and its scales; `inputs` is the axis that products sum over."""
    import qwix  # imported here, since it takes half a second

    channels = [axis for axis in range(kernel.ndim) if axis != inputs]
    found = qwix.quantize(kernel, jnp.int8, channelwise_axes=channels, scale_dtype=jnp.float32)
    return found.qvalue, jnp.squeeze(found.scale, inputs)
