import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.config.load import load_config, typed
from mllmsubj.models.layers import abstract_params
from mllmsubj.parallel.sharding import parameter_specs
from mllmsubj.toyworld.probe.network import DISTANCES, GlimpseConfig, Probe, ProbeConfig, crop_subjects, variogram
from mllmsubj.toyworld.probe.reader import make_network
from mllmsubj.tree import flatten
from tests.environment import ROOT
from tests.small import initialized

LOOK = GlimpseConfig(stem=2, widths=(8, 16), blocks=(1, 1))
SMALL = ProbeConfig(whole=LOOK, close=LOOK, cut=8, span=1.5, norm_num_groups=4, maps=2)
PLACES = {"column": (0.25, 0.5, 0.75), "row": (0.9, 0.7), "size": (0.3, 0.5)}
FAR = {name: len(values) for name, values in PLACES.items()}


@pytest.fixture(scope="module")
def probe():
    network = Probe(SMALL, 16, {"shape": 5, **FAR}, ("shape",), PLACES)
    return network, jax.jit(lambda params, *arrays: network.apply({"params": params}, *arrays)), initialized(network)


def test_probe_logits(probe):
    network, apply, params = probe
    images, names = jnp.zeros((4, 16, 16, 3)), []
    jax.eval_shape(
        lambda: names.extend(network.apply({"params": params}, images))
    )  # jit sorts the keys of the dictionary it returns
    logits = apply(params, images)
    assert {name: each.shape[1] for name, each in logits.items()} == {"shape": 5, **FAR}
    assert names == ["shape", *FAR]
    assert all(each.dtype == jnp.float32 for each in logits.values())
    parameter_specs({"probe": params})  # every path has a sharding rule


def test_probe_position(probe):
    """Logits depend on the position of the same dot, and not on other images of the batch."""
    _, apply, params = probe
    images = np.zeros((2, 16, 16, 3), np.float32)
    images[0, 4:8, 0:4] = images[1, 4:8, 12:16] = 1.0
    both = apply(params, images)["column"]
    assert np.abs(both[0] - both[1]).max() > 1e-3
    np.testing.assert_allclose(apply(params, images[1:])["column"][0], both[1], atol=1e-5)


def test_probe_local_glimpse(probe):
    """Identity logits depend on the crop around the subject alone, position logits on the whole image."""
    _, apply, params = probe
    rng, places = np.random.default_rng(0), jnp.asarray([[0.25, 0.9, 0.3]])
    images = rng.uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    elsewhere = images.copy()
    elsewhere[:, :6] = elsewhere[:, :, 10:] = 0
    here, there = (apply(params, each, places) for each in (images, elsewhere))
    np.testing.assert_allclose(here["shape"], there["shape"], atol=1e-5)
    assert np.abs(here["row"] - there["row"]).max() > 1e-3


def test_probe_predicted_position(probe):
    """If no position is given, the crop is at the expectation over the global glimpse's logits."""
    _, apply, params = probe
    images = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    own = apply(params, images)
    places = [jax.nn.softmax(own[name]) @ jnp.asarray(values) for name, values in PLACES.items()]
    given = apply(params, images, jnp.stack(places, axis=1))
    np.testing.assert_allclose(own["shape"], given["shape"], atol=1e-5)


def test_cut_out():
    """A crop is a square of twice the subject's size, centered half the subject's size above its feet."""
    images = np.arange(256.0, dtype=np.float32).reshape(1, 16, 16, 1)
    same = crop_subjects(images, jnp.asarray([[0.5, 0.75, 0.5]]), 2.0, 16)  # the whole image
    np.testing.assert_allclose(same, images, rtol=1e-5)
    corner = crop_subjects(images, jnp.asarray([[0.25, 0.375, 0.25]]), 2.0, 8)
    np.testing.assert_allclose(corner, images[:, :8, :8], rtol=1e-5)
    half = np.asarray(crop_subjects(images, jnp.asarray([[0.5, 0.75, 0.5]]), 2.0, 8))  # downscaled by averaging
    np.testing.assert_allclose(half[0, 3, 3], images[0, 6:8, 6:8].mean(), rtol=1e-5)
    beyond = np.asarray(crop_subjects(images, jnp.asarray([[0.0, 0.75, 0.5]]), 2.0, 16))
    assert (beyond[:, :, :7] == 0).all()
    assert (beyond[:, 1:, 9:] > 0).all()


@pytest.mark.parametrize("colours", [((1.0, -1.0, -0.5), (-0.5, 1.0, 0.0)), ((0.0, 0.3, 0.9), (0.9, 0.9, 0.9))])
def test_variogram_textures(colours):
    """Variograms distinguish textures whatever their colors."""
    one, other = np.asarray(colours, np.float32)
    y, x = np.mgrid[:24, :24]
    masks = {"stripes": x // 2 % 2 == 0, "checks": (x // 2 + y // 2) % 2 == 0}
    found = {
        name: np.asarray(variogram(np.where(mask[None, :, :, None], one, other)))[0, 10, 10].reshape(3, 4)
        for name, mask in masks.items()
    }
    across, down, along, back = range(4)
    near, far = DISTANCES.index(2), DISTANCES.index(4)
    assert found["stripes"][near, across] > 0.3 > -2 > found["stripes"][near, down]
    assert min(found["checks"][near, [across, down]]) > 0.3 > -2 > max(found["checks"][near, [along, back]])
    assert max(found["stripes"][far, across], found["checks"][far, across]) < -2  # at a distance of one period
    assert np.ptp(np.asarray(variogram(np.ones((1, 8, 8, 3), np.float32)))) == 0


def test_tiny_probe_size():
    """The probe of configs/tiny.py has fewer than 400,000 parameters."""
    config = load_config(str(ROOT / "configs" / "tiny.py"))
    network = make_network(typed(ProbeConfig, config.pretrain.probe.network, "network"), config.sampling.height)
    assert sum(leaf.size for leaf in flatten(abstract_params(network)).values()) < 400_000
