"""The list of breaks fits the source as it is, and its runner tells breaks that tests notice from others."""

import ast
import shutil

import pytest

from tests.breaks.locate import Break, DoesNotApply, broken, definitions, load, locate
from tests.breaks.run import Clean, judge, waves
from tests.imports import ROOT

BREAKS = load()
SOURCE = """
def double(x):
    return 2 * x

def outer():
    def inner():
        return 1
    return inner() + 1

class Box:
    SIZE = 3
    def size(self):
        return self.SIZE
"""


@pytest.fixture
def tree(tmp_path):
    """A package of one module with its test, one of whose tests fails whatever the source says."""
    files = {
        "mllmsubj/__init__.py": "",
        "mllmsubj/a.py": SOURCE,
        "tests/__init__.py": "",
        "tests/test_a.py": "from mllmsubj.a import double\n\n\n"
        "def test_fails():\n    assert double(0) == 1\n\n\ndef test_double():\n    assert double(2) == 4\n",
        "pyproject.toml": "",
    }
    for name, text in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copytree(ROOT / "tests" / "breaks", tmp_path / "tree" / "tests" / "breaks")
    return tmp_path / "tree"


def test_every_break_fits_one_place_and_changes_it():
    known, problems = definitions(ROOT), []
    for one in BREAKS:
        try:
            place = locate(one, known)
        except DoesNotApply as error:
            problems.append(f"{one.name}: {error}")
            continue
        before, after = (ast.dump(ast.parse(text)) for text in (place.file.read_text(), broken(one, place)))
        if before == after:
            problems.append(f"{one.name} changes nothing")
    assert problems == []


def test_forty_breaks_with_names_of_their_own_in_every_package():
    assert len(BREAKS) == len({one.name for one in BREAKS}) == 40
    known = definitions(ROOT)
    folders = {locate(one, known).file.parent for one in BREAKS}
    packages = [file.parent for file in (ROOT / "mllmsubj").glob("*/__init__.py")] + [ROOT / "launch"]
    spared = [folder.name for folder in packages if not any(each.is_relative_to(folder) for each in folders)]
    assert packages
    assert spared == []


@pytest.mark.parametrize(
    ("function", "find", "line"),
    [("double", "2", 3), ("outer.inner", "1", 7), ("Box.SIZE", "3", 11), ("Box.size", "self.SIZE", 13)],
)
def test_a_break_changes_one_definition_alone(tree, function, find, line):
    one = Break("any", function, find, "None", "")
    before, after = SOURCE.splitlines(), broken(one, locate(one, definitions(tree))).splitlines()
    assert [number for number, pair in enumerate(zip(before, after, strict=True), 1) if len({*pair}) > 1] == [line]
    assert after[line - 1] == before[line - 1].replace(find, "None")


@pytest.mark.parametrize(
    ("function", "find", "said"),
    [("double", "x", "2 times"), ("double", "y", "0 times"), ("gone", "x", "no such definition")],
)
def test_a_break_that_fits_no_place_or_several_is_reported(tree, function, find, said):
    caught, line = judge(Break("any", function, find, "", ""), tree, Clean(tree, needed=True))
    assert not caught
    assert line.startswith("no longer applies: any")
    assert said in line


def test_waves_hold_each_test_file_once_and_none_of_the_breaks(tree):
    (tree / "tests" / "test_other.py").write_text("")
    assert waves("mllmsubj.a", tree) == [["tests/test_a.py"], ["tests/test_other.py"]]


@pytest.mark.slow
def test_only_a_test_that_passes_without_the_break_catches_it(tree):
    clean = Clean(shutil.copytree(tree, tree.with_name("clean")), needed=True)
    caught, line = judge(Break("wrong", "double", "2 * x", "3 * x", ""), tree, clean)
    assert caught
    assert "tests/test_a.py::test_double" in line
    caught, line = judge(Break("untested", "Box.size", "self.SIZE", "0", "It holds less."), tree, clean)
    assert not caught
    assert line.startswith("NOT CAUGHT  untested  (mllmsubj/a.py")
    assert line.endswith("It holds less.")
