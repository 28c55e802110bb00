"""The notebooks: rules for the committed files, and their execution with smaller numbers."""

import base64
import io
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectModel
from tests.environment import ROOT, xla_flags
from tests.small import random_like

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = "tests/experiments/small.py"
LINES = 5
"""The most lines of a code cell, without blank ones."""
COMMAND = re.compile(r"^!", re.MULTILINE)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_rules(path):
    """Code cells are short and have no outputs, the first has the parameters, and no path is absolute."""
    nbformat.validate(nbformat.read(path, as_version=4))
    cells = code_cells(path)
    wrong = [cell.source for cell in cells if cell.outputs or cell.execution_count]
    wrong += [cell.source for cell in cells if len(re.findall(r"^\s*\S", cell.source, re.MULTILINE)) > LINES]
    wrong += [cell.source for cell in cells if len(COMMAND.findall(cell.source)) > 1]  # the last one's exit code counts
    assert wrong == []
    assert [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", ())] == [0]
    assert not re.search(r"(?<![\w.:/}])/(home|root|content|tmp|usr|work|Users)\b", path.read_text())


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder with other parameters; returns the images that it shows."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the small experiment imports its parent from there
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    monkeypatch.setenv("XLA_FLAGS", xla_flags())

    def run(name, **parameters):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", ()):
                assert all(re.search(rf"\b{key}\b.*=", cell.source) for key in parameters)
                cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
            elif cell.cell_type == "code" and COMMAND.search(cell.source):
                cell.source += "\nassert _exit_code == 0"  # Jupyter continues after a failed command
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        shown = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", ())]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in shown]

    return run


def assert_not_blank(pictures):
    assert all(len(np.unique(picture.reshape(-1, 3), axis=0)) > 50 for picture in pictures)


@pytest.mark.slow
def test_notebook_quickstart(execute, tmp_path):
    config = load_config(str(ROOT / SMALL))
    params = random_like(SubjectModel(Experiment.from_config(config).model, Compute()).abstract_params())
    checkpoint.save(tmp_path / "small", config, params, checkpoint.TINY)
    photograph, row = execute("quickstart", CHECKPOINT="small", STEPS=2)
    assert photograph.shape == (300, 451, 3)
    picture = np.asarray(Image.open(tmp_path / "runs" / "quickstart.png"))
    assert picture.shape == (32, 32, 3)
    assert_not_blank([photograph, row, picture])


@pytest.mark.slow
def test_notebook_train_tiny(execute, tmp_path):
    config = tmp_path / "notebook.py"
    config.write_text(
        "from tests.experiments import small\n\n\n"
        "def get_config(variant):\n"
        "    config = small.get_config(variant)\n"
        "    config.evals.loss.every_steps = config.evals.samples.every_steps = 2\n"
        "    return config\n"
    )
    small = dict(ROOT=str(tmp_path), CONFIG=config.name, STAGE1_STEPS=4, STAGE2_STEPS=4, STEPS=4)
    shown = execute("train_tiny", **small)
    assert_not_blank(shown)
    curves, samples, row = (picture.shape[:2] for picture in shown[1:])
    assert samples == (2 * 32, 3 * 32)
    assert curves[1] > 2 * curves[0]
    assert row[1] > 3 * row[0]
    files = {path.name for path in (tmp_path / "runs").iterdir()}
    assert files >= {"tiny", "tiny-data.png", "tiny-curves.png", "tiny-stages.png"}


@pytest.mark.slow
def test_notebook_train_pod(execute, tmp_path):
    execute("train_pod", ROOT=str(ROOT), SIZES=SMALL, CONFIG=SMALL, SLICE="v5e:2x2")
    assert (tmp_path / "runs" / "weights" / "import.json").is_file()
    assert json.loads((tmp_path / "runs" / "compile.json").read_text())["fits"]


@pytest.mark.slow
def test_notebook_ablations(execute, tmp_path):
    small = dict(CONFIG=SMALL, WORKDIR="swept", STAGE1_STEPS=4, STAGE2_STEPS=2, EXAMPLES=4)
    assert_not_blank(execute("ablations", ROOT=str(ROOT), **small))
    table = (tmp_path / "swept" / "summary.csv").read_text().splitlines()
    assert len(table) > 2
    assert all("finished" in line for line in table[1:])
