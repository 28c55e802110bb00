import json

import numpy as np
import pytest

from mllmsubj.data.example import Unreadable
from mllmsubj.data.sources import open_named
from mllmsubj.errors import UserError
from tests.data.sources.pictures import write_manifest


def opened(path):
    return open_named(str(path), "train", 1, 64, 0)


def test_manifest_examples(folder):
    """Examples hold the files' bytes and the values of their lines."""
    source = opened(folder / "pairs.jsonl")
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert len(source) == len(lines)
    for number, (example, line) in enumerate(zip(source, lines, strict=True), 1):
        assert example.references == tuple((folder / name).read_bytes() for name in line["references"])
        assert example.target == (folder / line["target"]).read_bytes()
        masks = tuple(name and (folder / name).read_bytes() for name in line.get("masks", []))
        assert (example.masks, example.scores) == (masks, line.get("scores", {}))
        assert (example.prompt, example.subject) == (line["prompt"], "dog")
        assert example.origin == f"pairs.jsonl:{number}"
    assert source[np.int64(5)] == source[5]
    with pytest.raises(IndexError):
        source[6]


def test_manifest_index(folder):
    """Sizes are read from the images' headers."""
    index = opened(folder / "pairs.jsonl").index()
    assert index.width.tolist() == [48, 32, 48, 48, 48, 48]
    assert index.height.tolist() == [32, 48, 32, 32, 32, 32]
    assert index.references.tolist() == [1, 2, 1, 2, 1, 2]
    np.testing.assert_array_equal(index.scores["dino"], np.float32([0, 1 / 8, np.nan, 3 / 8, 4 / 8, 5 / 8]))
    assert {each.dtype for each in (index.width, index.height, index.references)} == {np.dtype(np.int32)}


def test_manifest_index_given_sizes(tmp_path):
    """A width and height in the manifest are used without reading the image."""
    write_manifest(tmp_path / "a.jsonl", [dict(reference="a", target="b", prompt="", width=640, height=480)])
    index = opened(tmp_path / "a.jsonl").index()
    assert (index.width.tolist(), index.height.tolist()) == ([640], [480])


def test_manifest_unreadable_images(mine):
    """Missing and damaged images raise Unreadable when they are read, and have size zero in the index."""
    (mine / "reference0_0.jpg").unlink()
    (mine / "target3.jpg").write_bytes(b"nothing")
    (mine / "target4.webp").unlink()
    source = opened(mine / "pairs.jsonl")
    with pytest.raises(Unreadable, match=r"^pairs.jsonl:1, reference 'reference0_0.jpg' is not there$"):
        source[0]
    assert source.index().width.tolist() == [48, 32, 48, 0, 0, 48]


def test_manifest_repr(mine):
    """The representation changes with any line of the manifest."""
    before = repr(opened(mine / "pairs.jsonl"))
    assert before == repr(opened(mine / "pairs.jsonl"))
    text = (mine / "pairs.jsonl").read_text()
    (mine / "pairs.jsonl").write_text(text.replace("number 4", "number four"))
    assert repr(opened(mine / "pairs.jsonl")) != before


def test_manifest_blank_lines_and_subfolders(mine):
    (mine / "below").mkdir()
    (mine / "target0.jpg").rename(mine / "below" / "target0.jpg")
    path = mine / "pairs.jsonl"
    path.write_text("\n" + path.read_text().replace("target0", "./below/../below/target0") + "\n\n")
    example = opened(path)[0]
    assert example.target == (mine / "below" / "target0.jpg").read_bytes()
    assert example.origin == "pairs.jsonl:2"


RIGHT = dict(references=["a.jpg"], target="b.jpg", prompt="p")
WRONG = {
    "unknown key": (RIGHT | {"promt": "p"}, ["'promt'", "did you mean 'prompt'"]),
    "missing key": (dict(references=["a.jpg"], prompt="p"), ["no 'target'"]),
    "no reference": (dict(target="b.jpg", prompt="p"), ["no 'references'"]),
    "both": (RIGHT | {"reference": "a.jpg"}, ["both reference and references"]),
    "empty references": (RIGHT | {"references": []}, ["references is []"]),
    "text for a list": (RIGHT | {"references": "a.jpg"}, ["references is 'a.jpg'", "list"]),
    "number for text": (RIGHT | {"prompt": 3}, ["prompt is 3", "text"]),
    "null target": (RIGHT | {"target": None}, ["target is None"]),
    "half a letter": (RIGHT | {"prompt": "\ud800"}, ["surrogate"]),
    "masks": (RIGHT | {"masks": ["m.png", None]}, ["2 masks for 1 references"]),
    "mask type": (RIGHT | {"masks": [3]}, ["masks is [3]"]),
    "scores": (RIGHT | {"scores": [0.5]}, ["scores is [0.5]"]),
    "score": (RIGHT | {"scores": {"dino": "high"}}, ["score 'dino' is 'high'"]),
    "infinite score": (RIGHT | {"scores": {"dino": float("inf")}}, ["score 'dino' is inf"]),
    "width alone": (RIGHT | {"width": 5}, ["width and height are 5 and None"]),
    "zero width": (RIGHT | {"width": 0, "height": 5}, ["width and height are 0 and 5"]),
    "absolute": (RIGHT | {"target": "/etc/passwd"}, ["'/etc/passwd'", "inside the folder"]),
    "out": (RIGHT | {"target": "a/../../b.jpg"}, ["'a/../../b.jpg'", "inside the folder"]),
    "mask out": (RIGHT | {"masks": ["../m.png"]}, ["'../m.png'"]),
    "list": ([1], ["list instead of an object"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_manifest_invalid_line(tmp_path, case):
    """The error names the file, the line and the mistake."""
    line, says = WRONG[case]
    write_manifest(tmp_path / "a.jsonl", [RIGHT, line])
    with pytest.raises(UserError) as error:
        opened(tmp_path / "a.jsonl")
    assert f"{tmp_path}/a.jsonl:2: " in str(error.value)
    for word in says:
        assert word in str(error.value)
    assert "more line" not in str(error.value)


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe\x00", b"[" * 100000])
def test_manifest_not_json(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    with pytest.raises(UserError, match=r"a.jsonl:1: not JSON"):
        opened(tmp_path / "a.jsonl")


def test_manifest_several_invalid_lines(tmp_path):
    """The error describes the first invalid line and lists the numbers of the others."""
    write_manifest(tmp_path / "a.jsonl", [RIGHT, {}, RIGHT, {}, {}])
    with pytest.raises(UserError, match=r"a.jsonl:2: no 'target'.*wrong as well: 2 more lines \(4, 5\)$"):
        opened(tmp_path / "a.jsonl")
    write_manifest(tmp_path / "a.jsonl", [{}] * 30)
    with pytest.raises(UserError, match=r"29 more lines \(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …\)$"):
        opened(tmp_path / "a.jsonl")


def test_manifest_empty(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no examples"):
        opened(tmp_path / "a.jsonl")
