"""A small model on toyworld at 32 x 32, as a checkpoint and as a training setup on a number of devices."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.config.schema import Experiment
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectModel
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.train.setup import Setup, restored
from mllmsubj.typing import Params
from tests.small import random_like, small_config


def config() -> ConfigDict:
    """Returns a config whose sampler uses both branches in the first step, then the VAE branch alone."""
    config = small_config()
    with config.unlocked():
        config.model.transformer.update(num_layers=1, num_single_layers=1)
        config.data.update(sizes=((32, 32),), threads=2, prefetch=2)
        config.reference.update(long_side=32, long_side_multi=32)
        config.sampling.update(height=32, width=32, steps=2, tau1=1.0, tau2=1.0)
        config.train.batch_size = 4
        config.evals.loss.update(every_steps=2, examples=6)
        config.evals.samples.update(every_steps=0, count=2, steps=0)
    return config


@cache
def params() -> Params:
    """Returns random parameters of the whole model, with stacked layers and nonzero adapters."""
    experiment = Experiment.from_config(config())
    return random_like(SubjectModel(experiment.model, Compute()).abstract_params())


def save(folder: Path) -> Path:
    checkpoint.save(folder, config(), params(), checkpoint.TINY)
    return folder


def run_on(folder: Path, devices: int) -> tuple[Setup, Params]:
    """Returns (setup, parameters), for use with the mesh of `mesh_of` set, as it must be during the call."""
    return restored(Experiment.from_config(config()), folder, mesh_of(devices))


@cache
def mesh_of(devices: int) -> jax.sharding.Mesh:
    return make_mesh(data=1, fsdp=devices, tensor=1, devices=jax.devices()[:devices])


def with_evals(run: Setup, **sections) -> Setup:
    """Returns the setup with other values in the config's `evals`."""
    return replace(run, experiment=replace(run.experiment, evals=replace(run.experiment.evals, **sections)))
