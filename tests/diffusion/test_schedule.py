"""Time grids, compared with diffusers' scheduler, and text-to-image, compared with its pipeline."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from mllmsubj.diffusion.schedule import ShiftConfig, equivalent_timestep, shift_exponent, time_grid
from mllmsubj.diffusion.stages import MLLM, Stage, plan_stages
from mllmsubj.inference.generator import Generator
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import Condition, SubjectModel
from mllmsubj.ops.patchify import TOKEN_PIXELS, pack
from tests.parity import assert_close, randomise, save
from tests.small import small_model

FLUX = ShiftConfig(base_tokens=256, max_tokens=4096, base_shift=0.5, max_shift=1.15)


def flux_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        base_shift=0.5,
        max_shift=1.15,
    )


@pytest.mark.parity
@pytest.mark.parametrize("steps", [1, 4, 25, 28])
@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096])
def test_time_grid_matches_diffusers(steps, tokens):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = flux_scheduler()
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert shift_exponent(tokens, FLUX) == pytest.approx(mu, rel=1e-12)
    np.testing.assert_allclose(time_grid(steps, tokens, FLUX), scheduler.sigmas.numpy(), atol=1e-6)


def test_time_grid_decreasing():
    """Times decrease from one to zero."""
    times = time_grid(28, 1024, FLUX)
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert (np.diff(times) < 0).all()


def test_plan_stages_paper_steps():
    """With 28 steps at 512² and τ = 0.95/0.85, the stages have 3, 4 and 21 steps."""
    stages = plan_stages(time_grid(28, 1024, FLUX), 0.95, 0.85)
    assert [stage.stop - stage.start for stage in stages] == [3, 4, 21]


@pytest.mark.parametrize(("t", "side"), [(0.95, 128), (0.85, 128), (0.3, 1024), (0.6, 512)])
def test_equivalent_timestep(t, side):
    """At equivalent timesteps, t / (1 - t) is proportional to the image's side."""
    moved = equivalent_timestep(t, side // 2, side * 2)
    assert moved / (1 - moved) / side == pytest.approx(t / (1 - t) / 512)
    assert [equivalent_timestep(end, side, side) for end in (0.0, 1.0)] == [0.0, 1.0]


def test_equivalent_timestep_tiny_config():
    """The tiny config's thresholds are equivalent to the paper's at its image size."""
    sampling = tiny.get_config().sampling
    moved = [round(equivalent_timestep(tau, sampling.height, sampling.width), 2) for tau in (0.95, 0.85)]
    assert [sampling.tau1, sampling.tau2] == moved == [0.83, 0.59]


@pytest.mark.parity
def test_text_to_image_matches_flux_pipeline(tmp_path):
    """Transformer, scheduler, packing, ids and VAE give the same pixels for the same noise and prompt tokens."""
    import torch
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

    from mllmsubj.convert import load_transformer, load_vae

    sizes = small_model().config.transformer
    transformer = randomise(
        FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=8,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=True,
        )
    )
    vae = randomise(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            norm_num_groups=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )
    )
    pipeline = FluxPipeline(flux_scheduler(), vae, None, None, None, None, transformer)
    pipeline.set_progress_bar_config(disable=True)
    height, width, steps, guidance = 64, 96, 5, 3.5
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, height // 8, width // 8, 4)).astype(np.float32)
    prompt = rng.standard_normal((2, 7, 12)).astype(np.float32)
    pooled = rng.standard_normal((2, 8)).astype(np.float32)
    channels_first = torch.tensor(latents).permute(0, 3, 1, 2)
    want = pipeline(
        prompt_embeds=torch.tensor(prompt),
        pooled_prompt_embeds=torch.tensor(pooled),
        latents=FluxPipeline._pack_latents(channels_first, 2, 4, height // 8, width // 8),
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="pt",
    ).images

    config, params = load_transformer(save(transformer, tmp_path / "transformer"))
    assert config == sizes
    vae_config, vae_params = load_vae(save(vae, tmp_path / "vae"))
    model = SubjectModel(replace(small_model().config, transformer=config, vae=vae_config), Compute())
    params, generator = {"transformer": params, "vae": vae_params}, Generator(model, FLUX)
    grid = (height // TOKEN_PIXELS, width // TOKEN_PIXELS)
    condition = Condition(
        text=prompt,
        image=jnp.zeros((2, 0, 12)),
        null=jnp.zeros((2, 0, 12)),
        reference=jnp.zeros((2, 0, 16)),
        pooled=pooled,
        guidance=jnp.full((2,), guidance),
        text_mask=None,
    )
    times = time_grid(steps, grid[0] * grid[1], FLUX).astype(np.float32)
    stages = (Stage(MLLM, 0, steps),)
    noise = jnp.asarray(pack(latents))
    tokens, _ = generator.sample(params, condition, noise, times, (1.0, 1.0), grid=grid, stages=stages, cfg=False)
    pixels = np.clip(generator.decode(params, tokens, grid) / 2 + 0.5, 0, 1)
    assert_close(pixels, want.permute(0, 2, 3, 1))
