"""Floating-point operations that a forward pass must spend, counted from sizes; a multiply-add is two."""

from mllmsubj.models.dit import MLP_RATIO, FluxConfig
from mllmsubj.models.modulation import FREQUENCIES


def transformer_flops(config: FluxConfig, image_tokens: int, context_tokens: int, output_tokens: int) -> int:
    """One velocity of one picture, attention included; `image_tokens` counts reference tokens too.

    FLUX.1-dev at 1024² (4096 tokens) with 512 context tokens: 74.4 TFLOP.
    """
    d, n, s = config.width, image_tokens, context_tokens
    block = 2 * (4 + 2 * MLP_RATIO) * d * d * (n + s) + 4 * d * (n + s) ** 2
    embed = 2 * d * (config.in_channels * (n + output_tokens) + config.joint_attention_dim * s)
    return block * (config.num_layers + config.num_single_layers) + embed + modulation_flops(config)


def modulation_flops(config: FluxConfig) -> int:
    """The part that depends on time and the pooled prompt alone."""
    d = config.width
    embedders = d * (FREQUENCIES + d) * (1 + config.guidance_embeds) + d * (config.pooled_projection_dim + d)
    return 2 * (embedders + d * d * (12 * config.num_layers + 3 * config.num_single_layers + 2))
