"""The paper's three sampling stages (Eq. 5), which define the condition tokens of each step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mllmsubj.typing import ActiveTokens

LastStage = Literal["drop_all", "keep_text"]
Conditions = Literal["staged", "both", "mllm", "vae"]
"""Condition tokens of the steps: the three stages, or the same tokens at every step, for comparison."""

TOLERANCE = 1e-6
"""Tolerance around τ1 and τ2, so that float rounding never moves a step to another stage."""


NOTHING = ActiveTokens(null=True)
MLLM = ActiveTokens(text=True, image=True)
BOTH = ActiveTokens(text=True, image=True, reference=True)
VAE = ActiveTokens(null=True, reference=True)
VAE_AND_TEXT = ActiveTokens(text=True, reference=True)
UNSTAGED: Mapping[Conditions, ActiveTokens] = {"both": BOTH, "mllm": MLLM, "vae": VAE}


@dataclass(frozen=True)
class Stage:
    """Steps `start` to `stop` (exclusive) of the time grid, which have the same active tokens."""

    active_tokens: ActiveTokens
    start: int
    stop: int


def plan_stages(
    times: np.ndarray,
    tau1: float,
    tau2: float,
    last_stage: LastStage = "drop_all",
    conditions: Conditions = "staged",
) -> tuple[Stage, ...]:
    """Splits a decreasing time grid at τ1 ≥ τ2: MLLM where t ≥ τ1, both where τ2 ≤ t < τ1, VAE where t < τ2.

    `times` has one entry more than there are steps. Stages without steps are omitted; τ1 = τ2 = 0 is MLLM at every
    step. Unless `conditions` is "staged", there is one stage with the tokens of `UNSTAGED`.
    Source: arXiv 2605.26111, Eq. 5, which leaves open whether the last stage keeps the text; the default drops it.
    """
    assert 0.0 <= tau2 <= tau1 <= 1.0
    starts = times[:-1]
    if conditions != "staged":
        return (Stage(UNSTAGED[conditions], 0, len(starts)),)
    first = int(np.sum(starts >= tau1 - TOLERANCE))
    second = int(np.sum(starts >= tau2 - TOLERANCE))
    last = VAE if last_stage == "drop_all" else VAE_AND_TEXT
    stages = (Stage(MLLM, 0, first), Stage(BOTH, first, second), Stage(last, second, len(starts)))
    return tuple(stage for stage in stages if stage.stop > stage.start)
