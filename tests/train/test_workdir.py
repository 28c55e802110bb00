import json
import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from mllmsubj.checkpoints.format import config_text
from mllmsubj.errors import UserError
from mllmsubj.train.workdir import open_workdir
from tests.environment import ROOT


def config(**changes) -> ConfigDict:
    made = ConfigDict(
        {
            "seed": 0,
            "mesh": {"fsdp": -1},
            "data": {"source": "toyworld", "threads": 2},
            "train": {"batch_size": 64, "stage1": {"steps": 10, "rates": ((".*", 1e-4),)}, "stage2": {"steps": 10}},
        }
    )
    made.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return made


def test_open_workdir_resumes(tmp_path):
    workdir = tmp_path / "new" / "run"
    for resumes in (False, True, True):
        with open_workdir(workdir, config()) as found:
            assert found == resumes
    assert (workdir / "config.json").read_text() == config_text(config())
    assert sorted(path.name for path in workdir.iterdir()) == [".lock", "config.json"]


def test_open_workdir_allowed_changes(tmp_path):
    changed = config(mesh__fsdp=4, data__threads=1, train__stage2__steps=20)
    with open_workdir(tmp_path, config()):
        pass
    with open_workdir(tmp_path, changed) as resumes:
        assert resumes
    assert (tmp_path / "config.json").read_text() == config_text(changed)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(train__batch_size=32), r"config: train\.batch_size: 64 there, 32 here; start"),
        (dict(seed=1, data__source="x" * 99), r'data\.source: "toyworld" there, "x{38}… here; seed: 0 there, 1 here'),
        (dict(train__stage1__steps=11, mesh__fsdp=2), r"config: train\.stage1\.steps: 10 there, 11 here; start"),
        (dict(train__stage1__rates=((".*", 2e-4),)), r'rates: \[\["\.\*", 0\.0001\]\] there'),
    ],
)
def test_open_workdir_other_config(tmp_path, changes, says):
    with open_workdir(tmp_path, config()):
        pass
    with pytest.raises(UserError, match=says) as error, open_workdir(tmp_path, config(**changes)):
        pass
    assert "\n" not in str(error.value)
    assert (tmp_path / "config.json").read_text() == config_text(config())
    with open_workdir(tmp_path, config()) as resumes:  # the lock was released
        assert resumes


def test_open_workdir_other_keys(tmp_path):
    """The error names keys that were added or removed."""
    with open_workdir(tmp_path, config()):
        pass
    old = json.loads((tmp_path / "config.json").read_text())
    del old["seed"]
    (tmp_path / "config.json").write_text(json.dumps(old | {f"key{i}": i for i in range(6)}))
    with (
        pytest.raises(UserError, match=r"key0: 0 there, absent here; .*\(and 2 more\)"),
        open_workdir(tmp_path, config()),
    ):
        pass


def test_open_workdir_locked(tmp_path):
    """One process at a time can open a workdir; a killed process releases it."""
    program = f"""
import sys
from pathlib import Path
from tests.train.test_workdir import config, open_workdir
with open_workdir(Path({str(tmp_path)!r}), config()):
    print("holds", flush=True)
    sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "holds\n"
    with (
        pytest.raises(UserError, match=rf"another run is using .*\(process {other.pid}\)"),
        open_workdir(tmp_path, config()),
    ):
        pass
    other.kill()
    other.communicate()
    with open_workdir(tmp_path, config()) as resumes:
        assert resumes
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("wrong", ["file", "parent", "config"])
def test_open_workdir_invalid(tmp_path, wrong):
    (tmp_path / "file").touch()
    workdir = {"file": tmp_path / "file", "parent": tmp_path / "file" / "run", "config": tmp_path}[wrong]
    if wrong == "config":
        (tmp_path / "config.json").write_text("{")
    says = r"config\.json is no config" if wrong == "config" else "cannot write workdir"
    with pytest.raises(UserError, match=says), open_workdir(workdir, config()):
        pass


def test_open_workdir_failed_start(tmp_path):
    """The config may change until there is a checkpoint, even after a start that failed."""

    def fails(save: str, **changes):
        with open_workdir(tmp_path, config(**changes)) as resumes:
            (tmp_path / "checkpoints" / save).mkdir(parents=True, exist_ok=True)
            raise UserError(f"resumes: {resumes}")

    for save, forbidden_changes in (("", dict(seed=1)), ("", dict(seed=2)), ("3", {})):
        with pytest.raises(UserError, match="resumes: False"):
            fails(save, **forbidden_changes)
    with pytest.raises(UserError, match="resumes: True"):
        fails("3")


def test_open_workdir_cleanup(tmp_path):
    """Temporary folders of killed runs are removed."""
    for name in (".model.0123abcd", ".base.0123abcd", "model"):
        (tmp_path / name / "params").mkdir(parents=True)
    with open_workdir(tmp_path, config()):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json", "model"]
