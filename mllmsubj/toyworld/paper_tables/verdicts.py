"""Whether what the paper says holds in what was measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mllmsubj.toyworld.paper_tables.tables import Claim, Row, Table

Metrics = Mapping[str, float]
"""Flat, as `metrics.json`: NAME, NAME/low and NAME/high."""
Outcome = Literal["holds", "does not hold", "open"]


@dataclass(frozen=True)
class Verdict:
    """On one claim."""

    claim: Claim
    by: float
    """Row minus the paper's choice."""
    noise: float
    """Half the 95 % interval of that difference."""

    @property
    def outcome(self) -> Outcome:
        """ "open" where the difference is within the noise."""
        if not abs(self.by) > self.noise:
            return "open"
        return "holds" if (self.by > 0) == (self.claim.side == "higher") else "does not hold"


def verdicts(table: Table, row: Row, mine: Metrics, chosen: Metrics) -> list[Verdict]:
    """On all that is said of a row; what was not measured is left out.

    The interval takes both numbers as independent. They are of the same examples and the same noise, so the true one is
    narrower: what is called open might be told apart.
    """
    found = []
    for claim in table.claims(row):
        value, other = mine.get(claim.metric), chosen.get(claim.metric)
        if value is not None and other is not None:
            noise = math.hypot(half(mine, claim.metric), half(chosen, claim.metric))
            found.append(Verdict(claim, value - other, noise))
    return found


def half(metrics: Metrics, name: str) -> float:
    """Half of a number's 95 % interval; infinite where there is none."""
    low, high = (metrics.get(f"{name}/{side}", math.nan) for side in ("low", "high"))
    return math.inf if math.isnan(high - low) else (high - low) / 2
