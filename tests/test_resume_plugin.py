"""`tests.resume`: a second run on the same tree runs the tests that did not pass; see the Makefile's test-all."""

import os
import re
import subprocess
import sys

import pytest

from tests.environment import ROOT

TESTS = """
import os, pytest

def test_one(): pass
def test_two(): assert os.environ.get("MENDED")
@pytest.mark.skip
def test_three(): pass
"""


@pytest.fixture
def run(tmp_path):
    """Runs pytest on a small repository with the plugin; returns the exit code and the counts of its last line."""
    (tmp_path / "tests").mkdir()
    for name in ("__init__.py", "environment.py", "resume.py"):
        (tmp_path / "tests" / name).write_bytes((ROOT / "tests" / name).read_bytes())
    (tmp_path / "tests" / "test_some.py").write_text(TESTS)
    (tmp_path / ".gitignore").write_text(".pytest_cache/\n__pycache__/\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)

    def run(**env):
        command = [sys.executable, "-m", "pytest", "-p", "xdist", "-n", "2", "-p", "tests.resume", "tests"]
        env |= os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
        return done.returncode, {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}

    return run


def test_resume_until_change(run, tmp_path):
    """Tests that passed are not run again until a file changes."""
    assert run() == (1, {"failed": 1, "passed": 1, "skipped": 1})
    assert run(MENDED="1") == (0, {"passed": 1})
    assert run(MENDED="1")[0] == 0  # nothing is left to run
    (tmp_path / "new.txt").write_text("changed")
    assert run(MENDED="1") == (0, {"passed": 2, "skipped": 1})
