"""The table in docs/tpu.md of the slices that each config fits on."""

import json

import pytest

from launch import fit_table

REPORT = {
    "chips": 4,
    "step": "train",
    "fits": True,
    "peak_bytes_per_chip": 12 * 2**30,
    "hbm_bytes_per_chip": 16 * 2**30,
    "collectives": {"all-gather": 2e9, "all-reduce": 5e8},
    "predicted_seconds": 1.25,
    "predicted_mfu": 0.555,
}


def test_page_up_to_date():
    """docs/tpu.md has the table that the committed reports give."""
    page = fit_table.PAGE.read_text()
    assert fit_table.replaced(page, fit_table.table(fit_table.known_variants())) == page


def test_page_without_marks():
    with pytest.raises(ValueError, match="no marks"):
        fit_table.replaced("# A page", "| a |")


def test_table_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_table, "FITS", tmp_path)
    too_big = REPORT | {
        "fits": False,
        "peak_bytes_per_chip": 20 * 2**30,
        "predicted_seconds": None,
        "predicted_mfu": None,
    }
    (tmp_path / "a-train.json").write_text(json.dumps(REPORT))
    (tmp_path / "b-train.json").write_text(json.dumps(too_big))
    rows = fit_table.table({"b": "v5e:2x2", "a": "v5e:2x2"}).splitlines()[2:]
    assert rows == [
        "| `b` | v5e:2x2 | 4 | train | 20.0 of 16 | no, +4.0 GiB | 2.5 | – | – |",
        "| `a` | v5e:2x2 | 4 | train | 12.0 of 16 | yes | 2.5 | 1.25 s | 56 % |",
    ]
