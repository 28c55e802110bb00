"""Components of the tiny model at even smaller sizes, and batches for them."""

import jax
import numpy as np

from mllmsubj.config.schema import Experiment
from mllmsubj.data.plan import Bucket
from mllmsubj.models.layers import unstack
from mllmsubj.toyworld import Split
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.registry import make_component
from mllmsubj.tree import flatten
from tests.small import small_config

SIZE = 32
BUCKET = Bucket(SIZE, SIZE, 1)


def config(component, **changes):
    config = small_config()
    with config.unlocked():
        config.sampling.update(height=SIZE, width=SIZE)
        config.data.update(examples=50, threads=2)
        config.log.update(tensorboard=False, every_steps=2)
        config.pretrain[component].update(steps=4, batch_size=8, warmup_steps=1, decay_steps=2, num_eval_examples=3)
        config.pretrain[component].update(eval_every_steps=4, **changes)
        config.pretrain.dit.pictures = 16
        config.pretrain.dla.examples = 8
    return config


def make(component, folder, **changes):
    return make_component(component, Experiment.from_config(config(component, **changes)), folder)


def read(component, rows):
    """Returns a batch of the first training images."""
    reader = component.reader(Experiment.from_config(config(component.name)).data)
    source = component.source(PictureSource(Split.TRAIN, rows, SIZE), threads=2)
    batch = reader.empty(BUCKET, rows)
    for row in range(rows):
        reader.read(source[row], BUCKET, np.random.default_rng(row), batch, row)
    return batch


def parameters(component):
    params = jax.jit(component.init)(jax.random.key(0))
    assert not any("/0/" in path for path in flatten(params))  # layers are stacked
    return (
        params
        if (component.dit if component.name == "dla" else component).model.compute.scan_layers
        else unstack(params)
    )
