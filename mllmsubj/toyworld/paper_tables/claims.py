"""Checks whether the paper's claims hold in the measured results."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mllmsubj.toyworld.paper_tables.tables import Claim, Row, Table

Metrics = Mapping[str, float]
"""Flat metrics as in `metrics.json`: NAME, NAME/low and NAME/high."""
Outcome = Literal["holds", "does not hold", "open"]


@dataclass(frozen=True)
class ClaimCheck:
    """Check of one claim."""

    claim: Claim
    by: float
    """The row's value minus that of the paper's choice."""
    noise: float
    """Half of the 95 % interval of that difference."""

    @property
    def outcome(self) -> Outcome:
        """Whether the claim holds; "open" if the difference is within the noise."""
        if not abs(self.by) > self.noise:
            return "open"
        return "holds" if (self.by > 0) == (self.claim.side == "higher") else "does not hold"


def check_claims(table: Table, row: Row, mine: Metrics, chosen: Metrics) -> list[ClaimCheck]:
    """Checks all claims about a row, except those whose metric was not measured.

    The interval assumes that both values are independent. They are of the same examples and the same noise, so the true
    interval is narrower: an open claim may be decidable.
    """
    found = []
    for claim in table.claims(row):
        value, other = mine.get(claim.metric), chosen.get(claim.metric)
        if value is not None and other is not None:
            noise = math.hypot(half(mine, claim.metric), half(chosen, claim.metric))
            found.append(ClaimCheck(claim, value - other, noise))
    return found


def half(metrics: Metrics, name: str) -> float:
    """Returns half of a metric's 95 % interval; infinite if it has none."""
    low, high = (metrics.get(f"{name}/{side}", math.nan) for side in ("low", "high"))
    return math.inf if math.isnan(high - low) else (high - low) / 2
