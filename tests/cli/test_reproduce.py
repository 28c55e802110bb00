"""`mllmsubj reproduce`: argument errors, the commands of a dry run, and a run of one table."""

import csv
import re

import pytest

from mllmsubj.cli import main, reproduce
from mllmsubj.evals import held_out
from tests.cli.test_sweep import TINY
from tests.train.runs import CONFIG

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workdir=out"], ["no config", "--config=tiny"]),
        ([f"--config={TINY}"], ["no workdir", "--workdir=DIR"]),
        (
            [f"--config={TINY}", "--workdir=out", "--tables=sampelr"],
            ["'sampelr' (did you mean 'sampler'?)", "branches"],
        ),
        ([f"--config={TINY}", "--workdir=out", "--limit=0"], ["--limit=0"]),
        ([f"--config={TINY}", "--workdir=out", "--config.train.stage1.stepz=1"], ["train.stage1.stepz", "'steps'"]),
    ],
)
def test_reproduce_invalid_arguments(tmp_path, capsys, words, says):
    with pytest.raises(SystemExit) as stopped:
        main.main(["mllmsubj", "reproduce", *words])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for text in says:
        assert text in err
    assert not (tmp_path / "out").exists()


def test_reproduce_all_examples():
    """`reproduce.ALL` is the number of held-out examples."""
    assert reproduce.ALL == held_out.EXAMPLES


def test_reproduce_dry_run(capsys):
    """The overrides of a row follow those for all rows."""
    words = [f"--config={TINY}", "--workdir=out", "--dry_run", "--limit=5", "--config.train.stage1.steps=7"]
    main.main(["mllmsubj", "reproduce", *words, "--config.train.stage2.steps=3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines].count("train") == 7
    assert [line.split()[1] for line in lines].count("evaluate") == 14
    (one,) = (line for line in lines if " train " in line and "--config.train.stage1.steps=0" in line)
    assert re.findall(r"stage[12]\.steps=(\d+)(?= |$)", one.partition("--workdir=")[2].partition(" ")[2])[:4] == [
        *("7", "3", "0", "10")
    ]
    assert all("--limit=5" in line for line in lines if " evaluate " in line)


@pytest.mark.slow
def test_reproduce_table(tmp_path, capsys):
    words = [f"--config={CONFIG}", "--workdir=out", "--tables=last_stage", "--limit=3"]
    words += ["--config.train.stage1.steps=1", "--config.train.stage2.steps=1"]
    main.main(["mllmsubj", "reproduce", *words])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "Last stage"
    assert out[-1] == "out/report.html"
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["drop_all", "keep_text"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 of 10000 held-out examples" in page
    assert page.count("<img ") == 3 * 4
