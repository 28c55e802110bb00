"""Training runs of the small experiment, in this process or in others, and their output."""

import contextlib
import json
import subprocess
import sys
from functools import cache, partial

import jax
import numpy as np
import orbax.checkpoint as ocp

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError
from mllmsubj.evals.suite import evaluators
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectModel
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.train import loop
from tests.environment import PIPES, ROOT, environment, shared
from tests.small import random_like

CONFIG = ROOT / "tests" / "experiments" / "small.py"


@cache
def weights():
    """Returns the folder of a checkpoint with random parameters of the small experiment, made once for all workers.

    Initializing a model by `train.weights=random` compiles a program that takes longer than a short training.
    """
    folder = shared() / "weights"
    if not folder.exists():
        config = load_config(str(CONFIG))
        model = SubjectModel(Experiment.from_config(config).model, Compute())
        with contextlib.suppress(UserError):  # another worker was faster
            checkpoint.save(folder, config, random_like(model.abstract_params()), checkpoint.TINY)
    return folder


def config(**changes):
    """Returns the small experiment's config with `weights()`; `changes` as train__stage1__steps=3."""
    made = load_config(str(CONFIG))
    made.train.weights = str(weights())
    made.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return made


def on_one_device(monkeypatch, module, devices=1):
    """Limits a module's mesh to the first few devices: most users have one, and programs compile faster."""
    monkeypatch.setattr(module, "make_mesh", partial(make_mesh, devices=jax.devices()[:devices]))


def train_here(monkeypatch, workdir, devices=1, **changes):
    """Trains in this process, on the first few of its devices."""
    on_one_device(monkeypatch, loop, devices)
    loop.train(config(**changes), workdir, evaluators)


def start(workdir, *overrides, processes=0):
    """Starts `mllmsubj train` on one device, or as `processes` of them joined by launch/local.py."""
    command = [sys.executable, "-m", "mllmsubj", "train", f"--config={CONFIG}", f"--workdir={workdir}"]
    overrides = (f"train.weights={weights()}", *overrides)
    command += [f"--config.{override}" for override in overrides]
    if processes:
        command = [sys.executable, "launch/local.py", f"--processes={processes}", "--devices=1", "--", *command]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **PIPES)


def wait_for_step(process, step, prefix=""):
    """Reads stderr up to the status line of a step at or after `step`; fails with the output if there is none."""
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(f"{prefix}stage") and "loss" in line:
            now = int(line.split("step ")[1].split("/")[0])
            if now >= step:
                return
    raise AssertionError(f"ended with {process.wait()}:\n{''.join(said)}")


def wait_for_save(process, workdir):
    """Reads stderr until a checkpoint is complete; steps may be faster than the disk."""
    while not ((workdir / "checkpoints").is_dir() and saves(workdir)):
        if not process.stderr.readline():
            raise AssertionError(f"ended with {process.wait()} and no save")


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    """Returns the losses of all steps in order, and checks that each step is logged exactly once."""
    found = [line for line in metrics(workdir) if "steps_per_sec" in line]
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return np.asarray([line["loss"] for line in found])


def saves(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def arrays(workdir):
    """Returns path -> array of `model` and of the newest checkpoint: parameters, optimizer state, EMA and counts."""
    newest = workdir / "checkpoints" / str(saves(workdir)[-1]) / "state"
    return read(workdir / "model" / "params", "model") | read(newest, "state")


def read(folder, name):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        found = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=wanted))
    return {name + jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(found)}


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def distance(found, expected):
    """Returns the largest relative difference, in norm, of a trained array, and its path.

    Norms are compared since Adam divides by gradients: an element whose gradient is nearly zero changes by rounding
    alone, by an amount that depends on the processor.
    """
    paths = [path for path in expected if path.startswith("model")]
    norms = {path: float(np.linalg.norm(expected[path])) or 1.0 for path in paths}
    return max((float(np.linalg.norm(found[path] - expected[path])) / norms[path], path) for path in paths)
