"""Lists of runs, and the name of each run."""

import numpy as np
import pytest

from mllmsubj.errors import UserError
from mllmsubj.sweeps import grid, listed, product, zipped
from mllmsubj.sweeps.names import run_name, short_key, word

KEYS = ("seed", "model.dla.width", "sampling.width", "sampling.tau1", "data.source", "evals.source", "model.x.tau12")


def test_run_lists():
    assert listed("a", (1, None)) == [{"a": 1}, {"a": None}]
    assert zipped({"a": (1, 2), "b": "xy"}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert grid({"a": (1, 2), "b": (3, 4)}) == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    assert product([{}, {"c": 0}], listed("seed", range(2))) == [
        {"seed": 0},
        {"seed": 1},
        {"c": 0, "seed": 0},
        {"c": 0, "seed": 1},
    ]


def test_run_lists_invalid():
    with pytest.raises(UserError, match="zipped lists differ in length: a has 2, b has 1"):
        zipped({"a": (1, 2), "b": (1,)})
    with pytest.raises(UserError, match="two parts of a product set seed"):
        product(listed("seed", (0,)), listed("seed", (1,)))


@pytest.mark.parametrize(
    ("key", "short"),
    [("seed", "seed"), ("sampling.tau1", "tau1"), ("model.dla.width", "dla.width"), ("data.source", "data.source")],
)
def test_short_key(key, short):
    """A key is shortened to its shortest suffix that is no other key's suffix."""
    assert short_key(key, KEYS) == short


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({}, "base"),
        ({"sampling.tau1": 0.9, "model.dla.width": 64}, "dla.width=64,tau1=0.9"),
        ({"sampling.tau1": np.float32(0.5)}, "tau1=0.5"),
        ({"seed": True}, "seed=true"),
        ({"seed": None}, "seed=none"),
        ({"seed": (0, 3)}, "seed=0-3"),
        ({"seed": "keep_text"}, "seed=keep_text"),
    ],
)
def test_run_name(overrides, name):
    """Names do not depend on the order of the overrides."""
    assert run_name(overrides, KEYS) == name
    assert run_name(dict(reversed(overrides.items())), KEYS) == name


def test_run_name_safe():
    """Names are distinct, have at most 120 characters and are safe as file names."""
    values = ["a/b", "a_b", "a b", "ä", "", "x" * 300, "x" * 301, ("a", 1), ("a-1",), (("dla/.*", None),), ()]
    names = [run_name({"data.source": value}, KEYS) for value in values]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name) <= 120
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,=+-")


def test_word():
    given = {"a": 1, "b.c": 1e-4, "d": True, "e": (0, 3), "f": [("dla/.*", None)], "g": "x y", "h": np.int64(2)}
    assert [word(key, value).removeprefix("--config.") for key, value in given.items()] == [
        "a=1",
        "b.c=0.0001",
        "d=true",
        "e=(0, 3)",
        "f=(('dla/.*', None),)",
        "g=x y",
        "h=2",
    ]
