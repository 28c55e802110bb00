"""FLOP counts against XLA's own for small unrolled models: XLA counts the body of a scan once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.models import flops
from mllmsubj.models.layers import Compute, unstack
from mllmsubj.models.subject import Features, SubjectConfig, SubjectModel, is_trained
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import ActiveTokens
from tests.environment import ROOT
from tests.small import small_config, small_inputs

COMPUTE = Compute(scan_layers=False, attention="xla")
EVERYTHING = ActiveTokens(null=True, text=True, image=True, reference=True)
GRID = (8, 12)


@pytest.fixture(scope="module")
def config() -> SubjectConfig:
    """A config wide enough for matrix products to outweigh elementwise operations, which only XLA counts."""
    config = small_config()
    with config.unlocked():
        model = config.model
        model.mllm.vision.update(hidden_size=96, num_hidden_layers=2, intermediate_size=160)
        model.mllm.text.update(hidden_size=128, intermediate_size=192, num_attention_heads=4)
        model.dla.update(input_dim=128, width=96, num_kv_heads=1, intermediate_size=160, context_dim=64)
        model.vae.update(block_out_channels=(16, 16, 32, 48))
        model.clip.update(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
        model.transformer.update(num_layers=2, num_single_layers=3, num_attention_heads=4, attention_head_dim=32)
        model.transformer.update(axes_dims_rope=(8, 12, 12), joint_attention_dim=64, pooled_projection_dim=64)
        model.lora.update(rank=24, targets=(*model.lora.targets, "proj_mlp"))
    return Experiment.from_config(config).model


@pytest.fixture(scope="module")
def model(config) -> SubjectModel:
    return SubjectModel(config, COMPUTE)


def params_of(model):
    """Returns the shapes of the parameters with unstacked layers."""
    stacked = SubjectModel(model.config, Compute()).abstract_params()
    return jax.eval_shape(unstack, stacked)


def counted(function, *args, optimised: bool = True) -> float:
    """Returns XLA's count for shapes: of the optimized program or, where that takes long, of its input."""
    lowered = jax.jit(function).lower(*args)
    return (lowered.compile() if optimised else lowered).cost_analysis()["flops"]


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def call(part, params, *args, **kwargs):
    return part.apply({"params": params}, *args, **kwargs)


def assert_near(ours: int, xla: float, least: float = 0.99):
    """Checks that XLA's count is at least `least` of ours, and at most a little more than ours."""
    assert least <= xla / ours <= 1.1, f"ours {ours:,}, XLA {xla:,.0f}: {xla / ours:.3f}"


def test_flops_frozen_encoders(model, config):
    params = params_of(model)
    ids = jax.ShapeDtypeStruct((1, 24), jnp.int32)

    def text(p, ids):
        return call(model.mllm, p, ids, jnp.ones_like(ids))

    assert_near(flops.decoder_flops(config.mllm.text, 24), counted(text, params["mllm"], ids))
    assert_near(flops.clip_flops(config.clip, 24), counted(lambda p, x: call(model.clip, p, x), params["clip"], ids))


@pytest.mark.parametrize(("method", "shape"), [("encode", (1, 64, 96, 3)), ("decode", (1, 8, 12, 4))])
def test_flops_vae(model, config, method, shape):
    """XLA does not count the products of a convolution with padding, whose share is larger for smaller images."""
    ours = getattr(flops, f"vae_{method}_flops")(config.vae, 64, 96)
    xla = counted(lambda p, x: call(model.vae, p, x, method=method), params_of(model)["vae"], array(*shape))
    assert 0.95 < xla / ours < 1.1


@pytest.mark.parametrize(("refiners", "pooled"), [(0, (0, 3)), (2, (0, 3)), (0, (1, 2))])
def test_flops_aggregator(config, refiners, pooled):
    sizes = replace(config, dla=replace(config.dla, num_refiner_blocks=refiners, states=pooled))
    model = SubjectModel(sizes, COMPUTE)
    states = array(sizes.dla.num_states, 1, 16, sizes.dla.input_dim)
    xla = counted(lambda p, x: call(model.dla, p, x, method="aggregate_text"), params_of(model)["dla"], states)
    assert_near(flops.aggregator_flops(sizes.dla, 16), xla)


def test_flops_encode_and_train(model, config):
    """Both programs of training are counted for a batch of two with two references of different sizes."""
    params, inputs = params_of(model), small_inputs(batch=2, references=((32, 48), (32, 32)), text=12)

    def encode(p, inputs, target):
        return model.encode(p, inputs), model.encode_image(p, target)

    target = array(2, GRID[0] * 16, GRID[1] * 16, 3)
    ours = flops.encode_flops(config, inputs, target.shape[1:3])
    assert_near(
        ours, counted(encode, params, inputs, target, optimised=False), least=0.95
    )  # convolutions' padding, as in test_flops_vae

    features = jax.eval_shape(model.encode, params, inputs)
    latents = array(2, GRID[0] * GRID[1], config.transformer.in_channels)
    trained = unflatten({path: leaf for path, leaf in flatten(params).items() if is_trained(path)})

    def gradient(trained, frozen, features, latents):
        def loss(trained):
            params = unflatten(flatten(frozen) | flatten(trained))
            condition = model.aggregate(params, features, jnp.ones(2))
            return jnp.mean(model.velocity(params, GRID, latents, jnp.full(2, 0.5), condition, EVERYTHING) ** 2)

        return jax.grad(loss)(trained)

    ours = flops.train_flops(config, features, GRID, EVERYTHING)
    assert_near(ours, counted(gradient, trained, params, features, latents, optimised=False))


def test_flops_active_tokens_and_lora(config):
    """Token groups that a stage does not attend to have no cost; adapters cost three times `adapter_flops`."""
    model = SubjectModel(config, COMPUTE)
    shapes = jax.eval_shape(model.encode, params_of(model), small_inputs(batch=1))
    cost = [flops.train_flops(config, shapes, GRID, a) for a in (EVERYTHING, replace(EVERYTHING, reference=False))]
    assert cost[0] > cost[1]
    bare = replace(config, lora=None)
    adapters = cost[0] - flops.train_flops(bare, shapes, GRID, EVERYTHING)
    tokens = GRID[0] * GRID[1] + shapes.references.shape[1], 6 + 4 + 3
    assert adapters == 3 * flops.adapter_flops(config.transformer, config.lora, *tokens)


def test_flops_full_size():
    """InternVL3-8B's decoder costs about 2 · parameters · tokens; an example of the paper's second stage is counted."""
    sizes = Experiment.from_config(load_config(str(ROOT / "configs" / "paper.py"))).model
    layers = SubjectModel(sizes, Compute()).abstract_params()["mllm"]["text"]["layers"]
    kernels = sum(leaf.size for path, leaf in flatten(layers).items() if path.endswith("kernel"))
    assert flops.decoder_flops(sizes.mllm.text, 512) == pytest.approx(2 * kernels * 512, rel=0.03)

    features = Features(
        text=array(29, 1, 256, 3584),
        text_mask=None,
        image=array(29, 1, 256, 3584),
        null=array(29, 1, 16, 3584),
        pooled=array(1, 768),
        references=array(1, 1024, 64),
        reference_mask=None,
        reference_sizes=((32, 32),),
    )
    assert flops.train_flops(sizes, features, (32, 32), EVERYTHING) / 1e12 == pytest.approx(125.9, abs=0.1)
