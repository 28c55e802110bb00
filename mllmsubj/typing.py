"""The one legend of axis letters, and the array types that signatures use.

Single letters name axis sizes and nothing else:

    b  batch                         d  width of a token (channels)
    n  tokens of an image stream     h  attention heads (g: key/value heads where fewer)
    s  tokens of any sequence        k  width of one head
    r  reference images              l  layers of a stack
    t  tiles given to the MLLM       c  channels of a picture or latent
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["ActiveTokens", "Array", "Bool", "Float", "Int", "Leaf", "Params", "PyTree", "Velocity"]

Array = jax.Array | np.ndarray

PyTree = Any
"""Any nesting of containers with arrays as leaves."""

Leaf = Any
"""An array field of a struct, its shape in the docstring: shapes and shardings pass through such fields too."""

Params = dict[str, Any]
"""Plain nested dict of arrays; a parameter's path is its keys joined by '/'."""


@dataclass(frozen=True)
class ActiveTokens:
    """The groups of tokens in the sequence beside the noisy ones; what is not named is not there at all."""

    null: bool = False
    """The MLLM's tokens of an empty prompt: stands in where nothing else fills the context."""
    text: bool = False
    """The MLLM's text tokens."""
    image: bool = False
    """The MLLM's tokens of the reference pictures."""
    reference: bool = False
    """The VAE's tokens of the reference pictures."""

    @property
    def mllm(self) -> bool:
        return self.text or self.image


Velocity = Callable[[Array, Array, PyTree, ActiveTokens], Array]
"""`(latents [b n d], t [b], condition, active_tokens) -> velocity [b n d]`: all that a sampler knows of a network."""
