"""The tables as an HTML page, as CSV and as text."""

import csv

import numpy as np
import pytest

from mllmsubj.toyworld.paper_tables.report import CHANCE, COLUMNS, RowResult, TableResult, as_csv, as_text, page
from tests.evals.test_results import Parser
from tests.toyworld.paper_tables.test_tables import ALL

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 8, 24, 3), np.uint8)
PROMPTS = [f"<prompt {i}>" for i in range(5)]


def found(value):
    metrics = {CHANCE: 0.4}
    for column in COLUMNS:
        name = column.metric
        metrics |= {name: value, f"{name}/low": value - 0.1, f"{name}/high": value + 0.1}
    return RowResult(metrics, PICTURES, PROMPTS)


FILLED = [TableResult(ALL["branches"], (found(0.3), None, found(0.6)))]


@pytest.fixture(scope="module")
def html():
    return page("a <title>", "lead & more", FILLED, {"training": "3 < 4"}, '{"key": "</pre>"}')


def test_page_self_contained(html):
    """The page loads no other file and escapes all text."""
    parser = Parser()
    parser.feed(html)
    assert not {"script", "link", "iframe"} & set(parser.tags)
    assert all(value.startswith("data:image/png;base64,") for name, value in parser.attributes if name == "src")
    text = "".join(parser.text)
    for said in ("a <title>", "lead & more", "3 < 4", '{"key": "</pre>"}', "<prompt 0>", "not finished"):
        assert said in text


def test_page_contents(html):
    """The page shows the rows, the claim checks and the images."""
    assert "identity lower: holds (−30.0 ± 14.1)" in html
    assert "30.0 ± 10.0" in html
    assert html.count("<img ") == 4 * 4  # examples x (reference, two rows, target)
    assert html.count("<circle ") == 2 * 4


def test_page_without_paper_setting():
    """Without a result of the paper's own setting, no claim is checked."""
    text = page("t", "l", [TableResult(ALL["branches"], (found(0.3), None, None))], {}, "")
    assert "holds (" not in text


def test_page_unfinished():
    text = page("t", "l", [TableResult(ALL["last_stage"], (None, None))], {}, "")
    assert text.count("not finished") == 2


def test_as_csv_and_as_text():
    rows = list(csv.DictReader(as_csv(FILLED).splitlines()))
    assert [row["row"] for row in rows] == ["MLLM only", "MLLM and VAE"]
    assert float(rows[0]["identity_accuracy/low"]) == pytest.approx(0.2)
    assert rows[0]["paper DINO-I"] == "0.6788"
    assert "prompt lower: holds" in rows[0]["orders"]
    lines = as_text(FILLED).splitlines()
    assert lines[0] == "Branches (Table 1)"
    assert lines[2].startswith("MLLM only")
    assert "60.0 ± 10.0" in lines[3]
