"""`tests.imports`: the test files that a change affects, on a small source tree."""

import subprocess
from pathlib import Path

import pytest

from tests.imports import changed_files, files_by_distance, touched

FILES = {
    "mllmsubj/__init__.py": "",
    "mllmsubj/low/__init__.py": "",
    "mllmsubj/low/base.py": "",
    "mllmsubj/low/alone.py": "",
    "mllmsubj/middle.py": "def late():\n    from mllmsubj.low import base\n    return base\n",
    "mllmsubj/top/__init__.py": "",
    "mllmsubj/top/main.py": "import importlib\n\n\ndef run(name):\n"
    '    return importlib.import_module(f"mllmsubj.top.commands.{name}")\n',
    "mllmsubj/top/commands/draw.py": "from .. import main\nfrom mllmsubj import middle\n",
    "launch/local.py": "import words\n",
    "launch/words.py": "",
    "tests/__init__.py": "",
    "tests/helper.py": "import mllmsubj.middle\n",
    "tests/unused.py": "",
    "tests/low/conftest.py": "",
    "tests/low/test_base.py": "",
    "tests/low/list.txt": "",
    "tests/test_direct.py": "from mllmsubj.low.base import x\n",
    "tests/test_helped.py": "from tests.helper import y\n",
    "tests/test_main.py": "from mllmsubj.top.main import run\n",
    "tests/test_launch.py": 'SCRIPT = ROOT / "launch" / "local.py"\nCODE = "from mllmsubj.low.alone import z"\n',
}
ALL = sorted(name for name in FILES if "/test_" in name)


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "want"),
    [
        ("mllmsubj.low.base", ["0 low/test_base.py", "1 test_direct.py", "3 test_helped.py", "4 test_main.py"]),
        ("mllmsubj.low.alone", ["1 test_launch.py"]),
        ("mllmsubj.top.commands.draw", ["2 test_main.py"]),
        ("launch.words", ["2 test_launch.py"]),
        ("tests.low.conftest", ["1 low/test_base.py"]),
        ("tests.test_direct", ["0 test_direct.py"]),
    ],
)
def test_files_by_distance_order(tree, module, want):
    found = files_by_distance({module}, tree)
    assert [f"{distance} {file.relative_to('tests')}" for distance, file in found] == want


def test_files_by_distance_package(tree):
    """A package gives the same files as all of its modules."""
    assert files_by_distance({"mllmsubj.top"}, tree) == files_by_distance(
        {"mllmsubj.top", "mllmsubj.top.main", "mllmsubj.top.commands.draw"}, tree
    )


def test_touched_deleted_module(tree):
    """A deleted module affects the tests that still import it."""
    (tree / "mllmsubj/low/base.py").unlink()
    assert Path("tests/test_helped.py") in touched(["mllmsubj/low/base.py"], tree)


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("tests/low/list.txt", ["tests/low/test_base.py"]),
        ("tests/unused.py", ALL),
        ("configs/tiny.py", ALL),
        ("mllmsubj/low/weights.safetensors", ALL),
        ("mllmsubj/low/alone.py", ["tests/test_launch.py"]),
    ],
)
def test_touched_changed_file(tree, path, want):
    assert sorted(map(str, touched([path], tree))) == want


def test_changed_files_branch_and_worktree(tree):
    """Changed files are those since the branch point and uncommitted ones."""

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", "-C", tree, *words], check=True)

    git("init", "--quiet", "--initial-branch=main")
    git("add", ".")
    git("commit", "--quiet", "--message=one")
    git("checkout", "--quiet", "-b", "work")
    (tree / "mllmsubj/middle.py").write_text("")
    git("commit", "--quiet", "--all", "--message=two")
    (tree / "launch/words.py").unlink()
    (tree / "tests/test_new.py").write_text("")
    assert changed_files("HEAD", tree) == ["launch/words.py", "tests/test_new.py"]
    assert changed_files("main", tree) == ["launch/words.py", "mllmsubj/middle.py", "tests/test_new.py"]
