"""A subject model of the smallest sizes that still has every part, and inputs for it."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mllmsubj.config.load import load_config
from mllmsubj.config.sampling import SamplingConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.config.train import ModesConfig
from mllmsubj.data.batch import Batch
from mllmsubj.diffusion.schedule import ShiftConfig
from mllmsubj.models.layers import Compute, init_params, unstack
from mllmsubj.models.subject import Condition, Layout, SubjectInputs, SubjectModel
from mllmsubj.train.setup import make_stages
from mllmsubj.train.state import new_state
from mllmsubj.tree import split
from tests.environment import ROOT

GRID = (4, 6)
"""Rows and columns of the noisy tokens."""
SHIFT = ShiftConfig(256, 4096, 0.5, 1.15)
SETTINGS = SamplingConfig(
    height=64,
    width=96,
    steps=4,
    tau1=0.95,
    tau2=0.85,
    last_stage="drop_all",
    conditions="staged",
    guidance=2.5,
    text_guidance=1.0,
    reference_guidance=1.0,
    batch_size=2,
)
"""Pictures of GRID."""


def small_config() -> ConfigDict:
    config = load_config(str(ROOT / "configs" / "tiny.py"))
    with config.unlocked():
        model = config.model
        model.mllm.vision.update(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        model.mllm.vision.update(image_size=32, patch_size=8)
        model.mllm.text.update(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
        model.mllm.text.update(num_key_value_heads=1)
        model.dla.update(num_states=3, states=(0, 3), input_dim=16, width=16, num_heads=2, num_kv_heads=2)
        model.dla.update(intermediate_size=16, context_dim=12)
        model.vae.update(block_out_channels=(4, 4, 4, 4), latent_channels=4, norm_num_groups=2)
        model.clip.update(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        model.transformer.update(in_channels=16, num_layers=2, num_single_layers=2, num_attention_heads=2)
        model.transformer.update(attention_head_dim=8, axes_dims_rope=(2, 2, 4), joint_attention_dim=12)
        model.transformer.update(pooled_projection_dim=8)
        model.lora.update(rank=4, alpha=8.0)
        config.train.update(batch_size=8, ema_decay=0.98)
        # The shipped recipe may change; what tests compare to 1e-5 does not.
        config.train.time.update(mean=1.0, std=1.3)
        for stage in (config.train.stage1, config.train.stage2):
            stage.update(warmup_steps=20, decay_steps=0, learning_rates=(("dla/.*", 1e-3), (".*/lora_[ab]", 1e-3)))
    return config


def small_model(lora: bool = False, **compute) -> SubjectModel:
    sizes = Experiment.from_config(small_config()).model
    return SubjectModel(sizes if lora else replace(sizes, lora=None), Compute(**compute))


def initialized(model):
    """A module's initial parameters, by one compiled program instead of one an operation."""
    return jax.jit(partial(init_params, model))(jax.random.key(0))


def random_like(tree, seed=0):
    """Random values for a tree of shapes: activations stay near one and nothing is zero by chance of initialisation."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        scale = shape.shape[-2] ** -0.5 if len(shape.shape) > 1 else 0.3
        return jnp.asarray(rng.standard_normal(shape.shape) * scale, jnp.float32)

    return jax.tree.map(leaf, tree)


def small_condition(batch=2, references=((3, 2),), text=5, image=4, null=3, seed=0) -> Condition:
    rng = np.random.default_rng(seed)

    def tokens(count, channels):
        return jnp.asarray(rng.standard_normal((batch, count, channels)), jnp.float32)

    mask = np.ones((batch, text), bool)
    mask[-1, text - 2 :] = False
    return Condition(
        text=tokens(text, 12),
        image=tokens(image, 12),
        null=tokens(null, 12),
        reference=tokens(sum(h * w for h, w in references), 16),
        pooled=tokens(1, 8)[:, 0],
        guidance=jnp.linspace(1.0, 4.0, batch),
        text_mask=jnp.asarray(mask),
        reference_sizes=tuple(references),
    )


def small_inputs(batch=1, references=((32, 48),), text=6, padding=2, seed=0) -> SubjectInputs:
    """Ids: 2 of head, 4 visual tokens a reference with one between, then text and padding."""
    rng = np.random.default_rng(seed)
    head, spans = [1, 2], []
    for _ in references:
        spans.append((len(head), len(head) + 4))
        head += [261] * 4 + [3]
    length = len(head) + text
    ids = np.full((batch, length), 5, np.int32)
    ids[:, : len(head)] = head
    ids[:, len(head) :] = rng.integers(10, 200, (batch, text))
    mask = np.broadcast_to(np.arange(length) < length - padding, (batch, length))
    pictures = [rng.uniform(-1, 1, (batch, h, w, 3)).astype(np.float32) for h, w in references]
    return SubjectInputs(
        input_ids=ids,
        attention_mask=mask,
        null_ids=np.asarray([[1, 2, 7, 8, 9]], np.int32),
        clip_ids=np.asarray([[256, 65, 66, 257, 257]] * batch, np.int32),
        pixel_values=rng.standard_normal((batch * len(references), 32, 32, 3)).astype(np.float32),
        references=tuple(pictures),
        layout=Layout((len(head), length), tuple(spans)),
        null_text=(2, 5),
    )


def small_batch(rows=4, size=(64, 96), side=64, seed=0):
    """A batch with one reference a row, 8-bit, as `small_inputs` lays tokens out; odd rows' references are 64 x 32."""
    rng = np.random.default_rng(seed)
    inputs = small_inputs(rows, ((side, side),), seed=seed)
    mask = np.ones((rows, side // 16, side // 16), bool)
    mask[1::2, :, side // 32 :] = False
    return Batch(
        input_ids=inputs.input_ids,
        attention_mask=np.array(inputs.attention_mask),
        clip_ids=inputs.clip_ids,
        tiles=rng.integers(0, 256, (rows, 1, 32, 32, 3), np.uint8),
        references=rng.integers(0, 256, (rows, 1, side, side, 3), np.uint8),
        reference_mask=mask.reshape(rows, -1),
        target=rng.integers(0, 256, (rows, *size, 3), np.uint8),
        example=np.arange(rows, dtype=np.int32),
        skipped=np.zeros(rows, np.int32),
        text=inputs.layout.text,
        images=inputs.layout.images,
    )


def small_step(
    modes=(0.6, 0.15, 0.15, 0.1), grad_accum_steps=1, rates=(("dla/.*", 1e-2), (".*/lora_[ab]", 1e-2)), **compute
):
    """One stage on the small model, with the state before the first step and the frozen parameters."""
    config = small_config()
    with config.unlocked():
        config.train.stage2.learning_rates = rates
        config.train.grad_accum_steps = grad_accum_steps
    experiment = Experiment.from_config(config)
    model = small_model(lora=True, **compute)
    train = experiment.train
    train = replace(train, stage2=replace(train.stage2, modes=ModesConfig(*modes)))
    params = random_like(small_model(lora=True).abstract_params())
    stage = make_stages(replace(experiment, train=train, seed=0), model, params, (1, 2, 7, 8, 9), (2, 5))[1]
    trained, frozen = split(params, set(stage.step.rates))
    if not model.compute.scan_layers:
        frozen = unstack(frozen)
    return stage, new_state(trained, set(stage.step.rates), stage.step.optimizer, ema=True), frozen
