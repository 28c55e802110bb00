import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.models.layers import abstract_params, init_params
from mllmsubj.models.probe import Probe, ProbeConfig
from mllmsubj.sharding import flatten, parameter_specs
from tests.small import ROOT

SMALL = ProbeConfig(stem=2, widths=(8, 16), blocks=(1, 1), norm_num_groups=4, maps=2)


@pytest.fixture(scope="module")
def probe():
    network = Probe(SMALL, 16, {"shape": 5, "column": 3})
    return network, init_params(network, jax.random.key(0))


def test_logits_of_each_attribute(probe):
    network, params = probe
    logits = network.apply({"params": params}, jnp.zeros((4, 16, 16, 3)))
    assert {name: each.shape for name, each in logits.items()} == {"shape": (4, 5), "column": (4, 3)}
    assert all(each.dtype == jnp.float32 for each in logits.values())
    parameter_specs({"probe": params})  # every path has a rule


def test_place_matters(probe):
    """The same dot elsewhere is read otherwise, and pictures of a batch do not see each other."""
    network, params = probe
    images = np.zeros((2, 16, 16, 3), np.float32)
    images[0, 4:8, 0:4] = images[1, 4:8, 12:16] = 1.0
    both = network.apply({"params": params}, images)["column"]
    assert np.abs(both[0] - both[1]).max() > 1e-3
    np.testing.assert_allclose(network.apply({"params": params}, images[1:])["column"][0], both[1], atol=1e-5)


def test_the_shipped_one_is_small():
    from mllmsubj.evals.toyworld.probe import make_network
    from mllmsubj.experiment import load_config, typed

    config = load_config(str(ROOT / "configs" / "tiny.py")).pretrain.probe.network
    network = make_network(typed(ProbeConfig, config, "network"), 128)
    assert sum(leaf.size for _, leaf in flatten(abstract_params(network))) < 400_000
