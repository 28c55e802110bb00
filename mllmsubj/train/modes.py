"""Condition modes: which groups of tokens a training example sees, as masks over its row.

Each mode is what one of the sampler's stages (diffusion/stages.py) attends to, so that training meets every
sequence that sampling will: masking a token as a key equals leaving it out.
"""

from dataclasses import astuple, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.config.train import ModesConfig
from mllmsubj.diffusion.stages import BOTH, MLLM, NOTHING, VAE
from mllmsubj.models.subject import Condition
from mllmsubj.typing import ActiveTokens, Array, Int

MODES = {"both": BOTH, "mllm": MLLM, "vae": VAE, "none": NOTHING}
NAMES = tuple(MODES)
assert tuple(field.name for field in fields(ModesConfig)) == NAMES


def draw(key: Array, modes: ModesConfig) -> Int[Array, ""]:
    """Number of a mode in `NAMES`, by its share."""
    return jnp.searchsorted(np.cumsum(astuple(modes))[:-1], jax.random.uniform(key), side="right")


def union(modes: ModesConfig) -> ActiveTokens:
    """Tokens that at least one of the modes that occur attends to: no others need to be in the sequence."""
    used = [MODES[name] for name in NAMES if getattr(modes, name)]
    return ActiveTokens(*(any(getattr(mode, field.name) for mode in used) for field in fields(ActiveTokens)))


def masked(condition: Condition, modes: Int[Array, " b"]) -> Condition:
    """The condition with each row's masks as its mode says."""

    def mask(group: str) -> Array:
        seen = jnp.asarray([getattr(mode, group) for mode in MODES.values()])[modes]
        tokens, present = getattr(condition, group), getattr(condition, f"{group}_mask")
        rows = jnp.broadcast_to(seen[:, None], tokens.shape[:2])
        return rows if present is None else rows & present

    groups = [field.name for field in fields(ActiveTokens)]
    masks: dict[str, Any] = {f"{group}_mask": mask(group) for group in groups}
    return replace(condition, **masks)
