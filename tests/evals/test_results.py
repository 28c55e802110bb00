import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mllmsubj.errors import UserError
from mllmsubj.evals.report import page
from mllmsubj.evals.results import Line, Results, lines, output_folder, write

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 8, 24, 3), np.uint8)
RESULTS = Results(
    benchmark="heldout",
    checkpoint="a <b> & c",
    fingerprint="0123456789ab",
    seed=3,
    examples=6,
    settings={"data": "toyworld"},
    config='{"key": "</pre>"}',
    numbers={"loss/all": 0.25, "loss/both": float("nan")},
    images={"samples": PICTURES},
    texts={"samples": ('<script>alert("1")</script>', 'a "cat" auf dem 月')},
    meanings={"loss/all": "smaller is better", "samples": "side by side"},
)


class Parser(HTMLParser):
    """Tags, their attributes, and the text between them."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def parsed():
    parser = Parser()
    parser.feed(page(RESULTS))
    return parser


def test_results_metrics():
    """Metrics are a flat dictionary for JSON, with None for NaN."""
    assert RESULTS.metrics() == {
        "benchmark": "heldout",
        "checkpoint": "0123456789ab",
        "seed": 3,
        "examples": 6,
        "loss/all": 0.25,
        "loss/both": None,
    }


def test_page_self_contained(parsed):
    """The page loads no other file."""
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    sources = [value for name, value in parsed.attributes if name in ("src", "href")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page(RESULTS)


def test_page_contents(parsed):
    for text in (
        *(RESULTS.checkpoint, RESULTS.fingerprint, RESULTS.config, *RESULTS.texts["samples"]),
        *("loss/all", "0.25", "not finite", "smaller is better", "toyworld", "reference", "drawn", "target"),
    ):
        assert text in parsed.text
    assert "note" not in dict(parsed.attributes).values()
    assert 'class="note">beware &lt;' in page(replace(RESULTS, warning="beware <"))


def test_lines_intervals():
    """A metric's interval and its value on real images are on its line."""
    reference_value = {"a/low": 0.1234, "a/high": 0.3, "a/real": 0.975, "b/low": float("nan"), "b/high": float("nan")}
    numbers = {"a": 0.25, "b": float("nan"), "c/real": 1.0} | reference_value
    assert list(lines(numbers)) == [
        Line("a", 0.25, "0.123 to 0.3", "real pictures 0.975"),
        Line("b", numbers["b"], "", ""),
        Line("c/real", 1.0, "", ""),
    ]
    text = page(replace(RESULTS, numbers=numbers))
    assert '<td class="number">0.25</td><td class="number">0.123 to 0.3</td>' in text
    assert "a/low" not in text
    assert "95 %" not in page(RESULTS)


def test_write_files(tmp_path):
    folder = output_folder(str(tmp_path / "new" / "out"))
    for results in (replace(RESULTS, seed=2), RESULTS):  # the second replaces the first
        write(results, page(results), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "report.html", "samples.png"]
    assert [path.name for path in folder.parent.iterdir()] == ["out"]
    assert json.loads((folder / "metrics.json").read_text()) == RESULTS.metrics()
    assert (folder / "report.html").read_text() == page(RESULTS)
    with Image.open(folder / "samples.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.concatenate(list(PICTURES)))
    assert output_folder(str(folder)) == folder


def test_write_failure(tmp_path, monkeypatch):
    """After a failed write, the earlier output is unchanged and no temporary file is left."""

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "out"
    write(RESULTS, "old", folder)
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match=r"cannot write output '.*out': No space left on device"):
        write(RESULTS, "new", folder)
    assert (folder / "report.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_output_folder_invalid(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    for output, says in (
        (None, "no output; name the folder"),
        (str(tmp_path / "file"), "file' is a file; name a folder"),
        (str(tmp_path / "file" / "out"), "is not a folder that can be written to"),
        (str(tmp_path / "mine"), "mine' holds other files, such as 'thesis.tex'; name a new folder"),
    ):
        with pytest.raises(UserError, match=says):
            output_folder(output)
