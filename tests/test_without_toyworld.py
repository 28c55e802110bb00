"""The package without its folder `toyworld`, which FLUX does not need to train, generate and evaluate."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.environment import ROOT, environment
from tests.train.runs import weights

EXAMPLES = 8


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package, the configs and the tests, without toyworld."""
    root = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "toyworld", "*.safetensors")
    for folder in ("mllmsubj", "configs", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    return root


def run(root, *words):
    """Runs Python in the copy, whose modules come before the installed ones."""
    done = subprocess.run(
        [sys.executable, *words], cwd=root, env=environment(PYTHONPATH=str(root)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_import_all_modules(copy):
    program = """
import importlib, pkgutil, mllmsubj
assert mllmsubj.__file__.startswith({root!r}), mllmsubj.__file__
for module in pkgutil.walk_packages(mllmsubj.__path__, "mllmsubj."):
    if not module.name.startswith(("mllmsubj.__main__", "mllmsubj.bench", "mllmsubj.data.tfds")):
        importlib.import_module(module.name)
"""
    run(copy, "-c", program.format(root=str(copy)))


@pytest.mark.slow
def test_round_trip_manifest(copy):
    """Trains on a manifest, generates, exports and evaluates."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(EXAMPLES):
        for name in (f"reference{number}.png", f"target{number}.png"):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(copy / name)
        example = dict(references=[f"reference{number}.png"], target=f"target{number}.png", prompt="on the moon")
        lines.append(json.dumps(example) + "\n")
    (copy / "pairs.jsonl").write_text("".join(lines))
    data = ["--config.data.source=pairs.jsonl", "--config.evals.source=pairs.jsonl"]
    steps = ["--config.train.stage1.steps=2", "--config.train.stage2.steps=2"]
    config = ["--config=tests/experiments/small.py", f"--config.train.weights={weights()}"]
    command = ["-m", "mllmsubj"]
    run(copy, *command, "train", *config, "--workdir=run", *data, *steps, "--config.evals.loss.every_steps=2")
    prompt = "--prompt=a thing on the moon"
    run(copy, *command, "generate", "--checkpoint=run", "--reference=reference0.png", prompt, "--output=out.png")
    with Image.open(copy / "out.png") as image:
        assert image.size == (32, 32)
    run(copy, *command, "export", "--checkpoint=run", "--output=exported")
    assert (copy / "exported" / "dla.safetensors").is_file()
    run(copy, *command, "evaluate", "--checkpoint=run", "--benchmark=heldout", "--output=scores", "--limit=4")
    assert json.loads((copy / "scores" / "metrics.json").read_text())["loss/all"] > 0
