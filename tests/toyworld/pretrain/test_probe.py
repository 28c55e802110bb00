"""Training of the probe: labels, augmentation and loss."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mllmsubj.config.schema import Experiment
from mllmsubj.data.plan import Bucket
from mllmsubj.toyworld import Split
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain import run
from mllmsubj.toyworld.pretrain.registry import make_component
from mllmsubj.toyworld.pretrain.run import pretrain
from mllmsubj.toyworld.probe.network import GlimpseConfig, ProbeConfig
from mllmsubj.toyworld.probe.reader import ProbeReader
from mllmsubj.toyworld.world.attributes import ATTRIBUTES
from mllmsubj.toyworld.world.render import COLUMN, ROW
from mllmsubj.toyworld.world.render import SIZE as SIZE_OF
from tests.small import small_config
from tests.train.runs import on_one_device

SIZE = 32


@pytest.fixture(scope="module")
def config():
    config = small_config()
    with config.unlocked():
        config.sampling.update(height=SIZE, width=SIZE)
        config.data.update(examples=50, threads=2)
        config.log.update(tensorboard=False, every_steps=1)
        probe = config.pretrain.probe
        probe.update(steps=2, batch_size=8, warmup_steps=1, decay_steps=1, eval_every_steps=2, num_eval_examples=12)
        probe.network.whole.update(stem=4, widths=(8, 16), blocks=(1, 1))
        probe.network.close.update(stem=4, widths=(8, 16), blocks=(1, 1))
        probe.network.update(cut=32, norm_num_groups=4)
    return config


@pytest.fixture(scope="module")
def component(config):
    return make_component("probe", Experiment.from_config(config), Path())


@pytest.fixture(scope="module")
def batch(component, config):
    """A batch of 16 training images."""
    source, reader = PictureSource(Split.TRAIN, 16, SIZE), component.reader(Experiment.from_config(config).data)
    bucket = Bucket(SIZE, SIZE, 1)
    batch = reader.empty(bucket, len(source))
    for row in range(len(source)):
        reader.read(source[row], bucket, np.random.default_rng(row), batch, row)
    return batch


def test_probe_labels(batch):
    picture = PictureSource(Split.TRAIN, 16, SIZE)[3]
    np.testing.assert_array_equal(batch.pixels[3], picture.render(SIZE))
    values = dict(zip(ATTRIBUTES, batch.labels[3].tolist(), strict=True))
    captions = {name: ATTRIBUTES[name][number] for name, number in values.items()}
    assert captions["shape"] == picture.identity.shape
    assert captions["accent"] == (picture.identity.accent or "none")
    assert captions["thing"] == picture.scene.thing


def test_probe_training_step(component, batch):
    """A gradient step lowers the loss."""
    params = jax.jit(component.init)(jax.random.key(0))

    @jax.jit
    def step(params):
        def loss(params):
            losses, metrics = component.losses(params, {}, batch, jax.random.key(1))
            return losses.mean(), metrics

        return jax.value_and_grad(loss, has_aux=True)(params)

    (before, metrics), gradients = step(params)
    assert before == pytest.approx(np.mean([np.log(len(values)) for values in ATTRIBUTES.values()]), rel=0.3)
    assert metrics["right"].shape == (2, len(ATTRIBUTES))
    assert (metrics["right"][1] == 16).all()
    assert optax.tree.norm(gradients) > 0
    stepped = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradients)
    assert step(stepped)[0][0] < before


def test_probe_position_jitter(component, batch):
    """Positions in training are the subject's own with a jitter of less than `jitter`."""
    pose = PictureSource(Split.TRAIN, 16, SIZE)[3].scene.pose
    true = np.asarray([COLUMN[pose.column], ROW[pose.row], SIZE_OF[pose.size]])
    off = (component._places(batch.labels, jax.random.key(0))[3] - true) / SIZE_OF[pose.size]
    assert (off != 0).all()
    assert np.abs(off).max() < component.config.jitter


def test_probe_augmentation(component):
    """Augmentation is slight and differs between images."""
    images = jnp.zeros((6, SIZE, SIZE, 3)).at[:, :, SIZE // 2 :].set(0.5)
    worn = np.asarray(component._augment(images, jax.random.key(0)))
    off = np.abs(worn - images).mean(axis=(1, 2, 3))
    assert (off > 0).all()
    assert off.max() < 0.2
    assert len(np.unique(off.round(4))) == 6


@pytest.mark.slow
def test_probe_reader_load(config, tmp_path, monkeypatch):
    """A probe pretrained for two steps can be loaded from its file and its provenance."""
    on_one_device(monkeypatch, run)
    pretrain(config, "probe", tmp_path)
    reader = ProbeReader.load(tmp_path)
    look = GlimpseConfig(stem=4, widths=(8, 16), blocks=(1, 1))
    assert reader.network.config == ProbeConfig(look, look, cut=32, span=1.4, norm_num_groups=4, maps=2)
    assert reader.size == SIZE
    pictures = np.stack([PictureSource(Split.TEST, 40, SIZE)[i].render(SIZE) for i in range(40)])
    read = reader(pictures)
    assert read.shape == (40, len(ATTRIBUTES))
    np.testing.assert_array_equal(reader(pictures[35:]), read[35:])
    assert (read < [len(values) for values in ATTRIBUTES.values()]).all()
