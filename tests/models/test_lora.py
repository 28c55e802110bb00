"""LoRA adapters of the transformer: initial, trained and merged."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from mllmsubj.models.dit import FluxTransformer
from mllmsubj.models.layers import Compute, init_params, unstack
from mllmsubj.models.lora import is_lora, merge_lora
from mllmsubj.tree import flatten, unflatten
from tests.models.test_dit import inputs
from tests.parity import assert_close
from tests.small import random_like, small_model


@pytest.fixture(scope="module")
def trained():
    """A transformer whose adapters hold random values."""
    model = small_model(lora=True).transformer
    model = FluxTransformer(replace(model.config, joint_attention_dim=24, pooled_projection_dim=12), lora=model.lora)
    return model, random_like(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))


def run(model, params):
    return jax.jit(model.apply)({"params": params}, **inputs())


def test_lora_targets(trained):
    """By default, the attention projections have adapters."""
    _, params = trained
    adapted = {path.removesuffix("/lora_a") for path in flatten(params) if path.endswith("lora_a")}
    double = ["to_q", "to_k", "to_v", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    single = ["to_q", "to_k", "to_v", "proj_out"]
    assert adapted == {f"double_blocks/attn/{n}" for n in double} | {f"single_blocks/{n}" for n in single}


def test_lora_initial(trained):
    """Adapters do not change the base model's paths; where `lora_b` is zero, they do not change its output."""
    model, params = trained
    base = FluxTransformer(model.config)
    kept = unflatten({path: leaf for path, leaf in flatten(params).items() if not is_lora(path)})
    plain = jax.eval_shape(lambda: init_params(base, jax.random.key(0)))
    assert jax.tree.structure(kept) == jax.tree.structure(plain)
    fresh = unflatten({path: leaf * (not path.endswith("lora_b")) for path, leaf in flatten(params).items()})
    assert_close(run(model, fresh), run(base, kept), 1e-6)  # two programs: XLA may round in another order


def test_merge_lora(trained):
    """The merged model has no adapters and the output of the adapted one."""
    model, params = trained
    merged = merge_lora(params, model.lora)
    assert not any(is_lora(path) for path in flatten(merged))
    adapted = run(model, params)
    assert_close(run(FluxTransformer(model.config), merged), adapted)
    without = unflatten({path: leaf for path, leaf in flatten(params).items() if not is_lora(path)})
    assert np.abs(run(FluxTransformer(model.config), without) - adapted).max() > 0.01


@pytest.mark.parametrize(
    "compute", [Compute(remat=True), Compute(scan_layers=False), Compute(attention="xla")], ids=str
)
def test_lora_compute_options(trained, compute):
    """Rematerialization, unrolled layers and the attention implementation do not change the output."""
    model, params = trained
    laid_out = params if compute.scan_layers else unstack(params)
    assert_close(run(FluxTransformer(model.config, compute, model.lora), laid_out), run(model, params), 1e-5)


def test_lora_gradients_remat(trained):
    """Rematerialization does not change the gradients."""
    model, params = trained

    def grads(compute):
        other = FluxTransformer(model.config, compute, model.lora)
        return jax.jit(jax.grad(lambda p: (other.apply({"params": p}, **inputs()) ** 2).sum()))(params)

    plain = flatten(grads(Compute()))
    for path, leaf in flatten(grads(Compute(remat=True))).items():
        assert_close(leaf, plain[path])
