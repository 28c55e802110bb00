"""Condition modes: the groups of tokens that a training example attends to, as masks over its row.

Each mode has the tokens of one of the sampler's stages (diffusion/stages.py), so that training covers every sequence
that occurs in sampling: masking a token as a key is equivalent to removing it.
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
    """Samples the index of a mode in `NAMES`, with the probabilities of the config."""
    return jnp.searchsorted(np.cumsum(astuple(modes))[:-1], jax.random.uniform(key), side="right")


def active_tokens_of(modes: ModesConfig) -> ActiveTokens:
    """Returns the groups of tokens that at least one mode in use attends to; the sequence needs no others."""
    used = [MODES[name] for name in NAMES if getattr(modes, name)]
    return ActiveTokens(*(any(getattr(mode, field.name) for mode in used) for field in fields(ActiveTokens)))


def mask_condition(condition: Condition, modes: Int[Array, " b"]) -> Condition:
    """Returns the condition with the masks of each row's mode."""

    def mask(group: str) -> Array:
        seen = jnp.asarray([getattr(mode, group) for mode in MODES.values()])[modes]
        tokens, present = getattr(condition, group), getattr(condition, f"{group}_mask")
        rows = jnp.broadcast_to(seen[:, None], tokens.shape[:2])
        return rows if present is None else rows & present

    groups = [field.name for field in fields(ActiveTokens)]
    masks: dict[str, Any] = {f"{group}_mask": mask(group) for group in groups}
    return replace(condition, **masks)
