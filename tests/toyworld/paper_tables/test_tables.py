"""The paper's tables: their runs, what they claim, and verdicts on made-up numbers."""

import numpy as np
import pytest

from mllmsubj.config.load import load_config
from mllmsubj.toyworld.paper_tables.tables import TABLES, Claim, runs
from mllmsubj.toyworld.paper_tables.verdicts import Verdict, verdicts
from tests.environment import ROOT

CONFIG = load_config(str(ROOT / "configs" / "tiny.py"))
ALL = {name: make(CONFIG) for name, make in TABLES.items()}


def claims(table, label):
    row = next(row for row in ALL[table].rows if row.label == label)
    return {(claim.metric, claim.side) for claim in ALL[table].claims(row)}


def test_runs_come_once_and_share_the_papers_choice():
    found = runs(list(ALL.values()))
    assert len(found) == 14
    assert found.count({}) == 1
    for name, table in ALL.items():
        cold = {"train.warm_start": False} if name == "connection" else {}  # there is a trained start for the DLA alone
        assert table.ours.overrides == cold
        assert all(row.overrides.items() >= cold.items() for row in table.rows)


def test_seven_trainings():
    trained = [{k: v for k, v in one.items() if not k.startswith("sampling.")} for one in runs(list(ALL.values()))]
    assert len({str(one) for one in trained}) == 7


def test_one_stage_trains_as_long():
    one = ALL["stages"].rows[0].overrides
    assert one["train.stage1.steps"] == 0
    assert one["train.stage2.steps"] == CONFIG.train.stage1.steps + CONFIG.train.stage2.steps


def test_more_guidance_is_of_the_kind_that_is_in_use():
    paper = load_config(str(ROOT / "configs" / "paper.py"))
    assert TABLES["sampler"](paper).rows[-1].overrides == {"sampling.guidance": 4.0}
    scales = {"sampling.text_guidance": 6.4, "sampling.reference_guidance": 3.2}
    assert ALL["sampler"].rows[-1].overrides == pytest.approx(scales)


def test_every_mix_of_conditions_sums_to_one():
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
def test_claims_are_the_papers_numbers(table, label, want):
    assert claims(table, label) == want


def around(value, half, name="identity_accuracy"):
    return {name: value, f"{name}/low": value - half, f"{name}/high": value + half}


@pytest.mark.parametrize(
    ("mine", "outcome"),
    [(around(0.5, 0.03), "holds"), (around(0.7, 0.03), "does not hold"), (around(0.56, 0.03), "open")],
)
def test_verdicts(mine, outcome):
    """Noise of both: 0.03 and 0.04 are 0.05."""
    table = ALL["branches"]
    (verdict,) = verdicts(table, table.rows[0], mine, around(0.6, 0.04))
    assert verdict.outcome == outcome
    assert verdict.noise == pytest.approx(0.05)


def test_without_an_interval_all_is_open():
    table = ALL["branches"]
    (verdict,) = verdicts(table, table.rows[0], {"identity_accuracy": 0.1}, {"identity_accuracy": 0.9})
    assert verdict.outcome == "open"
    assert Verdict(Claim("copy_psnr", "higher"), 0.0, 0.0).outcome == "open"
