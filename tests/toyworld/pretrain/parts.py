"""Components of the tiny model at even smaller sizes, and batches for them."""

import jax
import numpy as np

from mllmsubj.config.schema import Experiment
from mllmsubj.data.plan import Bucket
from mllmsubj.models.layers import unstack
from mllmsubj.toyworld import Split
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.parts import make_part
from mllmsubj.tree import flatten
from tests.small import small_config

SIZE = 32
BUCKET = Bucket(SIZE, SIZE, 1)


def config(part, **changes):
    config = small_config()
    with config.unlocked():
        config.sampling.update(height=SIZE, width=SIZE)
        config.data.update(examples=50, threads=2)
        config.log.update(tensorboard=False, every_steps=2)
        config.pretrain[part].update(steps=4, batch_size=8, warmup_steps=1, decay_steps=2, judged=3)
        config.pretrain[part].update(judge_every_steps=4, **changes)
        config.pretrain.dit.pictures = 16
        config.pretrain.dla.examples = 8
    return config


def make(part, folder, **changes):
    return make_part(part, Experiment.from_config(config(part, **changes)), folder)


def read(part, rows):
    """Returns a batch of the first training images."""
    reader = part.reader(Experiment.from_config(config(part.name)).data)
    source = part.source(PictureSource(Split.TRAIN, rows, SIZE), threads=2)
    batch = reader.empty(BUCKET, rows)
    for row in range(rows):
        reader.read(source[row], BUCKET, np.random.default_rng(row), batch, row)
    return batch


def parameters(part):
    params = jax.jit(part.init)(jax.random.key(0))
    assert not any("/0/" in path for path in flatten(params))  # layers are stacked
    return params if (part.dit if part.name == "dla" else part).model.compute.scan_layers else unstack(params)
