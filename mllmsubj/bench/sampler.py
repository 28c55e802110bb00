"""Sampler compared with diffusers' FluxPipeline, and token dropping compared with all tokens at every step.

Both sides use the same random weights, noise, steps and threads (one process), in float32. `peer_ratio` is
ours / diffusers; `staged.ratio` is dropping / all tokens, next to the ratio of their FLOPs.
"""

import tempfile
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.bench.timing import alternate, summary
from mllmsubj.checkpoints.format import TINY, read_config
from mllmsubj.config.schema import Experiment
from mllmsubj.convert import load_transformer
from mllmsubj.diffusion.schedule import time_grid
from mllmsubj.diffusion.stages import BOTH, MLLM, Stage, plan_stages
from mllmsubj.errors import UserError
from mllmsubj.inference.generator import Generator
from mllmsubj.models.dit import FluxConfig
from mllmsubj.models.flops import sample_flops, transformer_flops
from mllmsubj.models.layers import unstack
from mllmsubj.models.subject import Condition, SubjectModel
from mllmsubj.ops.patchify import TOKEN_PIXELS
from mllmsubj.typing import Params

HEAD, CONTEXT, CONTEXT_WIDTH, POOLED = 64, 128, 512, 256
ALL = replace(BOTH, null=True)


def run(width: int, tokens: int, steps: int, repeats: int) -> dict[str, Any]:
    """Measures a transformer of `width` on a square image of `tokens` tokens; returns the content of the JSON."""
    side = round(tokens**0.5)
    if side * side != tokens or width % HEAD:
        raise UserError(f"width={width}, tokens={tokens}: width must be a multiple of {HEAD}, tokens a square number")
    with tempfile.TemporaryDirectory() as folder:
        peer = _flux_pipeline(width, folder)
        config, params = load_transformer(folder)
    generator, params = _generator(config, params)
    noise = np.random.default_rng(0).standard_normal((1, tokens, config.in_channels), np.float32)
    condition = _condition(config, side)

    def diffusers() -> np.ndarray:
        return _peer_latents(peer, noise, condition, steps, side)

    grid = (side, side)
    times = time_grid(steps, tokens, generator.shift)

    def ours(stages: tuple[Stage, ...]) -> np.ndarray:
        latents, _ = generator.sample(
            params,
            condition,
            jnp.array(noise),
            times.astype(np.float32),
            (1.0, 1.0),
            grid=grid,
            stages=stages,
            cfg=False,
        )
        return np.asarray(latents)

    text_only = (Stage(MLLM, 0, steps),)
    staged, everything = plan_stages(times, 0.95, 0.85), (Stage(ALL, 0, steps),)
    difference = np.abs(ours(text_only) - diffusers()).max()
    against_peer = alternate({"mllmsubj": lambda: ours(text_only), "diffusers": diffusers}, repeats)
    against_all = alternate({"staged": lambda: ours(staged), "all_tokens": lambda: ours(everything)}, repeats)
    flops = {
        name: sample_flops(
            generator.model.config, condition, [(s.active_tokens, s.stop - s.start) for s in stages], tokens
        )
        for name, stages in (("staged", staged), ("all", everything))
    }
    forward = transformer_flops(config, tokens, CONTEXT, tokens)
    peers = summary(against_peer, "mllmsubj", "diffusers")
    return {
        "what": "sampler",
        "device": jax.devices()[0].device_kind,
        "width": width,
        "image_tokens": tokens,
        "context_tokens": CONTEXT,
        "steps": steps,
        "max_abs_difference_from_diffusers": float(difference),
        "peer": peers,
        "peer_ratio": peers["ratio"],
        "gflop_per_second": round(forward * steps / np.median(against_peer["mllmsubj"]) / 1e9, 1),
        "staged": summary(against_all, "staged", "all_tokens")
        | {"flops_ratio": round(flops["staged"] / flops["all"], 4)},
    }


def _flux_pipeline(width: int, folder: str) -> Any:
    """Returns a FluxPipeline with a random transformer, which is saved in `folder`."""
    try:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()  # it warns of missing torchvision, which is not needed
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    except ImportError as error:
        raise UserError(
            f"bench --what=sampler compares with diffusers, which is not installed ({error.name})"
        ) from error
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=HEAD,
        num_attention_heads=width // HEAD,
        joint_attention_dim=CONTEXT_WIDTH,
        pooled_projection_dim=POOLED,
        axes_dims_rope=(8, 28, 28),
        guidance_embeds=True,
    ).eval()
    transformer.save_pretrained(folder)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=4096, base_shift=0.5, max_shift=1.15
    )
    pipeline = FluxPipeline(scheduler, None, None, None, None, None, transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _peer_latents(pipeline: Any, noise: np.ndarray, condition: Condition, steps: int, side: int) -> np.ndarray:
    import torch

    return pipeline(
        prompt_embeds=torch.tensor(np.asarray(condition.text)),
        pooled_prompt_embeds=torch.tensor(np.asarray(condition.pooled)),
        latents=torch.tensor(noise),
        height=side * TOKEN_PIXELS,
        width=side * TOKEN_PIXELS,
        num_inference_steps=steps,
        guidance_scale=float(condition.guidance[0]),
        output_type="latent",
    ).images.numpy()


def _generator(config: FluxConfig, params: Params) -> tuple[Generator, Params]:
    """Returns the tiny experiment's generator with this transformer, and parameters as `Pipeline.load` stores them."""
    experiment = Experiment.from_config(read_config(TINY))
    model = SubjectModel(replace(experiment.model, transformer=config, lora=None), experiment.compute.resolve())
    params = params if model.compute.scan_layers else unstack(params)
    return Generator(model, experiment.shift), {"transformer": jax.device_put(params)}


def _condition(config: FluxConfig, side: int) -> Condition:
    """Returns random tokens: `CONTEXT` text tokens, no image tokens of the MLLM, a reference as large as the image."""
    rng = np.random.default_rng(1)

    def tokens(count: int, channels: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((1, count, channels), np.float32))

    return Condition(
        text=tokens(CONTEXT, config.joint_attention_dim),
        image=tokens(0, config.joint_attention_dim),
        null=tokens(8, config.joint_attention_dim),
        reference=tokens(side * side, config.in_channels),
        pooled=jnp.asarray(rng.standard_normal((1, config.pooled_projection_dim), np.float32)),
        guidance=jnp.full((1,), 2.5),
        text_mask=None,
        reference_sizes=((side, side),),
    )
