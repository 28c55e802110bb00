import json

import numpy as np
import pytest

from mllmsubj.data.sources import open_named
from mllmsubj.errors import UserError
from tests.data.sources.pictures import encoded, noise


def pair(i, score=4.0):
    caption = dict(img_path1=f"first {i}", img_path2=f"second {i}", subject=["Bread"], judgment="same")
    cot = dict(score_part={"Colour": 4.0}, score_final=score)
    return dict(img_path1=f"split1/{i}_1.png", img_path2=f"split1/{i}_2.png", caption=caption, vlm_filter_cot=cot)


def opened(path):
    return open_named(str(path), "train", 1, 64, 0)


@pytest.fixture
def labels(tmp_path):
    (tmp_path / "images" / "split1").mkdir(parents=True)
    for i in range(3):
        for j in (1, 2):
            (tmp_path / "images" / "split1" / f"{i}_{j}.png").write_bytes(
                encoded(noise(2 * i + j, (16 * j, 16)), "PNG")
            )
    path = tmp_path / "uno_1m_total_labels.json"
    path.write_text(json.dumps([pair(0), pair(1, 3.5), pair(2, 131184.67)]))
    return path


def test_uno_pair_both_directions(labels):
    """A pair gives two examples: each image is the target of one and the reference of the other."""
    source = opened(labels)
    pictures = labels.parent / "images" / "split1"
    there, back = source[2], source[3]
    assert (there.prompt, back.prompt, there.subject) == ("second 1", "first 1", "Bread")
    assert there.target == back.references[0] == (pictures / "1_2.png").read_bytes()
    assert back.target == there.references[0] == (pictures / "1_1.png").read_bytes()
    assert there.origin == "uno_1m_total_labels.json, pair 1"


def test_uno_index(labels):
    """Scores outside of their range count as missing."""
    index = opened(labels).index()
    np.testing.assert_array_equal(index.scores["score_final"], np.float32([4, 4, 3.5, 3.5, np.nan, np.nan]))
    assert index.width.tolist() == [32, 16] * 3


def test_uno_labels_of_split(labels):
    """The labels of a split are in a folder next to that of the images."""
    part = labels.parent / "labels" / "split1.json"
    part.parent.mkdir()
    labels.rename(part)
    assert len(opened(part)[0].target) > 0


@pytest.mark.parametrize(
    ("labels_are", "says"),
    [
        ("{", "not JSON"),
        ("{}", "list of pairs"),
        ("[3]", "pair 0 is not as in UNO-1M"),
        (json.dumps([{**pair(0), "img_path1": "/etc/a.png"}]), "pair 0: path '/etc/a.png'"),
        (json.dumps([{**pair(0), "caption": {}}]), "KeyError 'img_path1'"),
        (json.dumps([{**pair(0), "img_path2": "split7/a.png"}]), "no folder of its pictures"),
    ],
)
def test_uno_invalid_labels(labels, labels_are, says):
    labels.write_text(labels_are)
    with pytest.raises(UserError, match=says):
        opened(labels)
