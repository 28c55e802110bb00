"""Tables of the paper as runs of one config, each row with the paper's own results.

Every row is compared with the paper's choice, which is the unchanged config: `{}`.
Source: arXiv 2605.26111, Tables 1, 6, 7 and C.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ml_collections import ConfigDict

from mllmsubj.config.overrides import Overrides
from mllmsubj.diffusion.schedule import PAPER_SIDE, equivalent_timestep

PAPER_CHOICE = "the paper's choice"
EQUAL = 0.002
"""Results of the paper that differ by less do not count as ordered."""


@dataclass(frozen=True)
class Paper:
    """The paper's results of a row on DreamBench."""

    dino_i: float
    clip_i: float
    clip_t: float


@dataclass(frozen=True)
class Claim:
    """Expected order of a row's metric and that of the paper's choice."""

    metric: str
    """Name in the output of `mllmsubj evaluate --benchmark=toyworld`."""
    side: Literal["lower", "higher"]


@dataclass(frozen=True)
class Row:
    """One variant of the config."""

    label: str
    overrides: Overrides
    paper: Paper | None = None
    claims: tuple[Claim, ...] = ()
    """Claims besides those that follow from the paper's results."""


@dataclass(frozen=True)
class Table:
    """Variants that answer one question; one of them is the paper's choice."""

    title: str
    asks: str
    rows: tuple[Row, ...]

    @property
    def ours(self) -> Row:
        """Row of the paper's choice."""
        return next(row for row in self.rows if row.paper == PAPER or not row.overrides)

    def claims(self, row: Row) -> tuple[Claim, ...]:
        """Returns the claims about a row; DINO-I stands for identity accuracy, CLIP-T for prompt accuracy."""
        said, chosen = row.paper, self.ours.paper
        if row is self.ours or said is None or chosen is None:
            return row.claims
        pairs = (
            ("identity_accuracy", said.dino_i - chosen.dino_i),
            ("prompt_accuracy", said.clip_t - chosen.clip_t),
        )
        made = tuple(Claim(metric, "higher" if by > 0 else "lower") for metric, by in pairs if abs(by) >= EQUAL)
        return made + row.claims


PAPER = Paper(0.7482, 0.8443, 0.3010)
NO_WARM_START: Overrides = {"train.warm_start": False}


def runs(tables: Sequence[Table]) -> list[Overrides]:
    """Returns the overrides of all rows, without duplicates."""
    found: list[Overrides] = []
    for row in (row for table in tables for row in table.rows):
        if row.overrides not in found:
            found.append(row.overrides)
    return found


def _modes(*stages: str, **shares: float) -> Overrides:
    """Returns overrides that give stages one mix of condition modes, a tenth of it without conditions."""
    mix = {"both": 0.0, "mllm": 0.0, "vae": 0.0, "none": 0.1} | shares
    return {f"train.{stage}.modes.{mode}": share for stage in stages for mode, share in mix.items()}


def branches(config: ConfigDict) -> Table:
    """Returns the table of condition branches: MLLM only, VAE only, both."""
    del config
    copies = (Claim("pose_copy_rate", "higher"), Claim("copy_psnr", "higher"))
    rows = (
        Row(
            "MLLM only",
            _modes("stage1", "stage2", mllm=0.9) | {"sampling.conditions": "mllm"},
            Paper(0.6788, 0.8228, 0.2988),
        ),
        Row("VAE only", _modes("stage1", "stage2", vae=0.9) | {"sampling.conditions": "vae"}, claims=copies),
        Row("MLLM and VAE", {}, PAPER),
    )
    asks = (
        "What does each branch give? Trained with one condition alone, for as many steps. The paper has no row of the "
        "VAE alone; its reason for staging is that this copies the reference."
    )
    return Table("Branches (Table 1)", asks, rows)


def connection(config: ConfigDict) -> Table:
    """Returns the table of connections: last layer, single LAP, DLA."""
    states = config.model.dla.num_states
    rows = (
        Row("last layer", NO_WARM_START | {"model.dla.states": (states - 1, states)}, Paper(0.6566, 0.8128, 0.2893)),
        Row("single LAP", NO_WARM_START | {"model.dla.shared": True}, Paper(0.7524, 0.8502, 0.2878)),
        Row("DLA", NO_WARM_START, PAPER),
    )
    asks = (
        "How is the MLLM read: its last layer, all layers by one pooling, or by two, for text and image tokens? All "
        "three begin with random numbers: only the DLA has a trained start."
    )
    return Table("Connection (Table 6)", asks, rows)


def stages(config: ConfigDict) -> Table:
    """Returns the table of one or two training stages, with and without staged sampling."""
    train = config.train
    one: Overrides = {"train.stage1.steps": 0, "train.stage2.steps": train.stage1.steps + train.stage2.steps}
    one |= _modes("stage2", both=0.9)
    every = {"sampling.conditions": "both"}
    rows = (
        Row("one stage", one | every, Paper(0.7184, 0.8245, 0.2971)),
        Row("one stage, staged sampling", one, Paper(0.5763, 0.7686, 0.2995)),
        Row("two stages, both at every step", every),
        Row("two stages, staged sampling", {}, PAPER),
    )
    asks = (
        "Are two stages of training needed, and stages of sampling? One stage is trained with both conditions, as long."
    )
    return Table("Stages (Table 7)", asks, rows)


def sampler(config: ConfigDict) -> Table:
    """Returns the table of the sweep over τ1 and τ2, with one row of stronger guidance."""
    sampling = config.sampling
    true = ("text_guidance", "reference_guidance")
    kinds = ("guidance",) if all(sampling[name] == 1.0 for name in true) else true
    stronger = {f"sampling.{name}": 1.6 * sampling[name] for name in kinds}

    def at(tau1: float, tau2: float) -> Overrides:
        equivalent = [round(equivalent_timestep(tau, sampling.height, sampling.width), 2) for tau in (tau1, tau2)]
        return {"sampling.tau1": equivalent[0], "sampling.tau2": equivalent[1]}

    rows = (
        Row("0, 0", at(0.0, 0.0), Paper(0.6905, 0.8225, 0.3044)),
        Row("0.97, 0.90", at(0.97, 0.9), Paper(0.7490, 0.8466, 0.2963)),
        Row("0.95, 0.85", {}, PAPER),
        Row("0.85, 0.70", at(0.85, 0.7), Paper(0.7282, 0.8376, 0.3034)),
        Row("0.95, 0.85, guidance × 1.6", stronger, Paper(0.7431, 0.8381, 0.3012)),  # the paper: 4 instead of 2.5
    )
    asks = (
        "Where should the sampler's stages change (τ1, τ2)? Nothing is trained anew; 0, 0 is the MLLM at every step. "
        f"τ are the paper's, of {PAPER_SIDE} pixels; smaller pictures change later, where as much of them is certain."
    )
    return Table("Sampler (Table C)", asks, rows)


def last_stage(config: ConfigDict) -> Table:
    """Returns the table of condition tokens in the last sampling stage."""
    del config
    rows = (Row("drop_all", {}), Row("keep_text", {"sampling.last_stage": "keep_text"}))
    asks = "Does the last stage keep the MLLM's text tokens beside the VAE's? The paper does not say, and has no table."
    return Table("Last stage", asks, rows)


TABLES: Mapping[str, Callable[[ConfigDict], Table]] = {
    table.__name__: table for table in (branches, connection, stages, sampler, last_stage)
}
"""Name -> function of the config without overrides that returns the table."""
