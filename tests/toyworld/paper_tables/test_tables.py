"""The paper's tables: their runs, their claims, and claim checks on synthetic numbers."""

import numpy as np
import pytest

from mllmsubj.config.load import load_config
from mllmsubj.toyworld.paper_tables.claims import ClaimCheck, check_claims
from mllmsubj.toyworld.paper_tables.tables import TABLES, Claim, runs
from tests.environment import ROOT

CONFIG = load_config(str(ROOT / "configs" / "tiny.py"))
ALL = {name: make(CONFIG) for name, make in TABLES.items()}


def claims(table, label):
    row = next(row for row in ALL[table].rows if row.label == label)
    return {(claim.metric, claim.side) for claim in ALL[table].claims(row)}


def test_runs_unique():
    """Each run is listed once, and every table compares with the paper's own setting."""
    found = runs(list(ALL.values()))
    assert len(found) == 14
    assert found.count({}) == 1
    for name, table in ALL.items():
        cold = {"train.warm_start": False} if name == "connection" else {}  # only the DLA can be warm-started
        assert table.ours.overrides == cold
        assert all(row.overrides.items() >= cold.items() for row in table.rows)


def test_runs_trainings():
    """The runs of all tables need seven trainings."""
    trained = [{k: v for k, v in one.items() if not k.startswith("sampling.")} for one in runs(list(ALL.values()))]
    assert len({str(one) for one in trained}) == 7


def test_stages_equal_steps():
    """Training in one stage has as many steps as both stages together."""
    one = ALL["stages"].rows[0].overrides
    assert one["train.stage1.steps"] == 0
    assert one["train.stage2.steps"] == CONFIG.train.stage1.steps + CONFIG.train.stage2.steps


def test_sampler_guidance():
    """The row with more guidance overrides the kind of guidance that the config uses."""
    paper = load_config(str(ROOT / "configs" / "paper.py"))
    assert TABLES["sampler"](paper).rows[-1].overrides == {"sampling.guidance": 4.0}
    scales = {"sampling.text_guidance": 6.4, "sampling.reference_guidance": 3.2}
    assert ALL["sampler"].rows[-1].overrides == pytest.approx(scales)


def test_runs_modes_sum_to_one():
    for one in runs(list(ALL.values())):
        for stage in ("stage1", "stage2"):
            shares = [v for k, v in one.items() if k.startswith(f"train.{stage}.modes.")]
            assert not shares or np.isclose(sum(shares), 1.0)


@pytest.mark.parametrize(
    ("table", "label", "want"),
    [
        ("branches", "MLLM only", {("identity_accuracy", "lower"), ("prompt_accuracy", "lower")}),
        ("branches", "VAE only", {("pose_copy_rate", "higher"), ("copy_psnr", "higher")}),
        ("branches", "MLLM and VAE", set()),
        ("connection", "single LAP", {("identity_accuracy", "higher"), ("prompt_accuracy", "lower")}),
        ("stages", "one stage, staged sampling", {("identity_accuracy", "lower")}),  # CLIP-T .2995, .3010: the same
        ("sampler", "0.97, 0.90", {("prompt_accuracy", "lower")}),  # DINO-I .7490, .7482: the same
        ("last_stage", "keep_text", set()),
    ],
)
def test_claims(table, label, want):
    """Claims follow from the paper's numbers."""
    assert claims(table, label) == want


def around(value, half, name="identity_accuracy"):
    return {name: value, f"{name}/low": value - half, f"{name}/high": value + half}


@pytest.mark.parametrize(
    ("mine", "outcome"),
    [(around(0.5, 0.03), "holds"), (around(0.7, 0.03), "does not hold"), (around(0.56, 0.03), "open")],
)
def test_verdicts(mine, outcome):
    """The noise of a difference combines both half-widths: 0.03 and 0.04 give 0.05."""
    table = ALL["branches"]
    (verdict,) = check_claims(table, table.rows[0], mine, around(0.6, 0.04))
    assert verdict.outcome == outcome
    assert verdict.noise == pytest.approx(0.05)


def test_verdicts_without_interval():
    """Without intervals, every claim is open."""
    table = ALL["branches"]
    (verdict,) = check_claims(table, table.rows[0], {"identity_accuracy": 0.1}, {"identity_accuracy": 0.9})
    assert verdict.outcome == "open"
    assert ClaimCheck(Claim("copy_psnr", "higher"), 0.0, 0.0).outcome == "open"
