"""Modules that a command imports, in a new process each."""

import json
import subprocess
import sys

import pytest

from tests.environment import ROOT

HELP = """
from mllmsubj.cli.main import COMMANDS, run
for name in COMMANDS:
    run(["mllmsubj", name, "--help"])
"""
LOAD = """
import mllmsubj
mllmsubj.Pipeline.load("tiny")
"""
UNREAD = "clu diffusers grain optax orbax pandas pyarrow qwix scipy tensorflow torch transformers"
"""Packages that are not imported to load "tiny"."""


@pytest.mark.parametrize(
    ("code", "unread"), [(HELP, f"flax jax numpy {UNREAD}"), (LOAD, UNREAD)], ids=["--help", "generate"]
)
def test_startup_imports(code, unread):
    program = f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in unread.split() if name in imported] == []
