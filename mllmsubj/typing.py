"""Array types of signatures, and the legend of their axis names.

Single letters are used for axis sizes only:

    b  batch                         d  width of a token (channels)
    n  tokens of an image stream     h  attention heads (g: key/value heads where fewer)
    s  tokens of any sequence        k  width of one head
    r  reference images              l  layers of a stack
    t  tiles given to the MLLM       c  channels of an image or latent
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
"""Nested containers with arrays as leaves."""

Leaf = Any
"""Array field of a struct, with its shape in the docstring; it may also contain a shape or a sharding."""

Params = dict[str, Any]
"""Plain nested dict of arrays; a parameter's path is its keys joined by '/'."""


@dataclass(frozen=True)
class ActiveTokens:
    """Groups of tokens in the sequence besides the noisy ones; groups that are False are left out of it."""

    null: bool = False
    """The MLLM's tokens of an empty prompt, used if no other group fills the context."""
    text: bool = False
    """The MLLM's text tokens."""
    image: bool = False
    """The MLLM's tokens of the reference images."""
    reference: bool = False
    """The VAE's tokens of the reference images."""

    @property
    def mllm(self) -> bool:
        """Whether any of the MLLM's tokens of the prompt or the references are active."""
        return self.text or self.image


Velocity = Callable[[Array, Array, PyTree, ActiveTokens], Array]
"""`(latents [b n d], t [b], condition, active_tokens) -> velocity [b n d]`, a sampler's only access to a network."""
