"""Error of int8 weights in a FLUX transformer's velocity and sampled latents, against bfloat16 and float32.

All use the same random weights. Errors are relative: |a − b| / |b| over all numbers.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.checkpoints.format import TINY, read_config
from mllmsubj.config.schema import Experiment
from mllmsubj.diffusion.sampler import sample
from mllmsubj.diffusion.schedule import time_grid
from mllmsubj.diffusion.stages import BOTH, plan_stages
from mllmsubj.errors import UserError
from mllmsubj.models.layers import Compute
from mllmsubj.models.quantize import quantize_frozen
from mllmsubj.models.subject import Condition, SubjectModel
from mllmsubj.typing import Array, Params

SIDE, CONTEXT = 8, 64


def run(width: int, steps: int) -> dict[str, Any]:
    """Measures a transformer of `width`, a multiple of 64, with `steps` of the staged sampler."""
    if width % 64:
        raise UserError(f"width is {width}; it must be a multiple of 64")
    model = _model(width)
    params = {"transformer": jax.jit(lambda key: model.init(key)["transformer"])(jax.random.key(0))}
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    held = {"float32": params, "bfloat16": narrow, "int8": quantize_frozen(narrow)}
    velocities, latents = {}, {}
    for name, weights in held.items():
        compute = Compute(jnp.float32 if name == "float32" else jnp.bfloat16)
        velocities[name], latents[name] = _outputs(replace(model, compute=compute), weights, steps)
    size = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for name, tree in held.items()}
    pairs = (("int8", "bfloat16"), ("int8", "float32"), ("bfloat16", "float32"))
    return {
        "what": "int8",
        "device": jax.devices()[0].device_kind,
        "width": width,
        "steps": steps,
        "bytes": size,
        "bytes_ratio": round(size["int8"] / size["bfloat16"], 4),
        "velocity_error": {f"{a} against {b}": _error(velocities[a], velocities[b]) for a, b in pairs},
        "sampled_latents_error": {f"{a} against {b}": _error(latents[a], latents[b]) for a, b in pairs},
    }


def _model(width: int) -> SubjectModel:
    sizes = Experiment.from_config(read_config(TINY)).model
    transformer = replace(
        sizes.transformer,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=512,
        pooled_projection_dim=256,
        axes_dims_rope=(8, 28, 28),
    )
    return SubjectModel(replace(sizes, transformer=transformer, lora=None), Compute())


def _outputs(model: SubjectModel, params: Params, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the velocity at t = 0.5 and the latents of the staged sampler."""
    rng, config = np.random.default_rng(0), model.config.transformer

    def tokens(count: int, channels: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((1, count, channels), np.float32))

    noise = tokens(SIDE * SIDE, config.in_channels)
    condition = Condition(
        text=tokens(CONTEXT, config.joint_attention_dim),
        image=tokens(CONTEXT, config.joint_attention_dim),
        null=tokens(8, config.joint_attention_dim),
        reference=tokens(SIDE * SIDE, config.in_channels),
        pooled=tokens(1, config.pooled_projection_dim)[:, 0],
        guidance=jnp.full((1,), 2.5),
        text_mask=None,
        reference_sizes=((SIDE, SIDE),),
    )
    shift = Experiment.from_config(read_config(TINY)).shift
    times = time_grid(steps, SIDE * SIDE, shift)
    stages = plan_stages(times, 0.95, 0.85)

    @jax.jit
    def both(params: Params) -> tuple[Array, Array]:
        def velocity(*args: Any) -> Array:
            return model.velocity(params, (SIDE, SIDE), *args)

        sampled, _ = sample(velocity, condition, noise, times.astype(np.float32), stages)
        return velocity(noise, jnp.full((1,), 0.5), condition, BOTH), sampled

    return tuple(np.asarray(each, np.float32) for each in both(params))  # type: ignore[return-value]


def _error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(f"{np.linalg.norm(found - wanted) / np.linalg.norm(wanted):.3g}")
