"""Model FLOPs of every component, computed from sizes; a multiply-add counts as two.

The convention is that of MFU: only matrix products and convolutions count, without recomputation by
rematerialization. Attention counts every pair of tokens, causal or not, as in the literature, and padding counts.
"""

from collections.abc import Iterable

from mllmsubj.models.clip import CLIPTextConfig
from mllmsubj.models.dit import MLP_RATIO, FluxConfig
from mllmsubj.models.dla import DLAConfig
from mllmsubj.models.lora import LoRAConfig
from mllmsubj.models.mllm import InternVLConfig
from mllmsubj.models.modulation import FREQUENCIES
from mllmsubj.models.qwen2 import Qwen2Config
from mllmsubj.models.subject import Condition, Features, SubjectConfig, SubjectInputs
from mllmsubj.models.vae import VAEConfig
from mllmsubj.typing import ActiveTokens


def train_flops(config: SubjectConfig, features: Features, grid: tuple[int, int], active_tokens: ActiveTokens) -> int:
    """Returns the FLOPs of the program `update` for one microbatch; only shapes of `features` are read.

    Trained components (DLA, adapters) cost three forward passes: one forward, one for gradients of inputs, one for
    gradients of kernels. A frozen kernel of the transformer costs two, and attention, which has no kernel, three.
    Components without gradients (modulation, embedding of latents) cost one.
    """
    dit = config.transformer
    batch, n = features.text.shape[-3], grid[0] * grid[1]
    text, image, null = (part.shape[-2] for part in (features.text, features.image, features.null))
    seen = n + active_tokens.reference * features.references.shape[-2]
    context = active_tokens.text * text + active_tokens.image * image + active_tokens.null * null

    aggregated = 0
    if active_tokens.text:
        aggregated += batch * aggregator_flops(config.dla, text)
    if active_tokens.image:
        aggregated += batch * aggregator_flops(config.dla, image)
    if active_tokens.null:
        aggregated += aggregator_flops(config.dla, null)
    forward = transformer_flops(dit, seen, context, n)
    once = modulation_flops(dit) + 2 * dit.width * dit.in_channels * seen
    attention = _transformer_attention(dit, seen + context)
    adapters = 3 * adapter_flops(dit, config.lora, seen, context)
    return 3 * aggregated + batch * (once + 2 * (forward - once - attention) + 3 * attention + adapters)


def sample_flops(
    config: SubjectConfig, condition: Condition, steps: Iterable[tuple[ActiveTokens, int]], tokens: int
) -> int:
    """Returns the FLOPs of a sampler's steps, given as (active tokens, count), for every row of `condition`."""
    total = 0
    for active_tokens, count in steps:
        parts = ("null", "text", "image")
        context = sum(getattr(condition, part).shape[1] for part in parts if getattr(active_tokens, part))
        image = tokens + active_tokens.reference * condition.reference.shape[1]
        one = transformer_flops(config.transformer, image, context, tokens)
        total += count * (one + adapter_flops(config.transformer, config.lora, image, context))
    return len(condition.text) * total


def encode_flops(config: SubjectConfig, inputs: SubjectInputs, target: tuple[int, int] | None = None) -> int:
    """Returns the FLOPs of the frozen encoders for one microbatch; only shapes of `inputs` are read.

    With `target`, height and width in pixels of the target images, the VAE also encodes one target per row.
    """
    batch, length = inputs.input_ids.shape
    pictures = [picture.shape[1:3] for picture in inputs.references] + ([target] if target else [])
    return (
        batch * decoder_flops(config.mllm.text, length)
        + decoder_flops(config.mllm.text, inputs.null_ids.shape[1])
        + len(inputs.pixel_values) * vision_flops(config.mllm)
        + batch * clip_flops(config.clip, inputs.clip_ids.shape[1])
        + batch * sum(vae_encode_flops(config.vae, *size) for size in pictures)
    )


def transformer_flops(config: FluxConfig, image_tokens: int, context_tokens: int, output_tokens: int) -> int:
    """Returns the FLOPs of one velocity of one image, without adapters; `image_tokens` includes reference tokens.

    FLUX.1-dev at 1024² (4096 tokens) with 512 context tokens: 74.4 TFLOP.
    """
    d, n, s = config.width, image_tokens, context_tokens
    kernels = 2 * (4 + 2 * MLP_RATIO) * d * d * (n + s) * (config.num_layers + config.num_single_layers)
    embed = 2 * d * (config.in_channels * (n + output_tokens) + config.joint_attention_dim * s)
    return kernels + _transformer_attention(config, n + s) + embed + modulation_flops(config)


def modulation_flops(config: FluxConfig) -> int:
    """Returns the FLOPs of `FluxTransformer.modulate` for one row."""
    d = config.width
    embedders = d * (FREQUENCIES + d) * (1 + config.guidance_embeds) + d * (config.pooled_projection_dim + d)
    return 2 * (embedders + d * d * (12 * config.num_layers + 3 * config.num_single_layers + 2))


def adapter_flops(config: FluxConfig, lora: LoRAConfig | None, image_tokens: int, context_tokens: int) -> int:
    """Returns the FLOPs that low-rank adapters add to one velocity of one image."""
    if lora is None:
        return 0
    d, n, s = config.width, image_tokens, context_tokens
    square = dict.fromkeys(("to_q", "to_k", "to_v"), 2 * d)  # name -> channels in and out
    double = dict.fromkeys((*square, "to_out"), n * 2 * d)
    double |= dict.fromkeys(("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"), s * 2 * d)
    single = square | {"proj_mlp": (1 + MLP_RATIO) * d, "proj_out": (2 + MLP_RATIO) * d}
    doubles = sum(double.get(name, 0) for name in lora.targets) * config.num_layers
    singles = sum(single.get(name, 0) for name in lora.targets) * (n + s) * config.num_single_layers
    return 2 * lora.rank * (doubles + singles)


def aggregator_flops(config: DLAConfig, tokens: int) -> int:
    """Returns the FLOPs of one of the DLA's two aggregators (LAP and connector) for the tokens of one row."""
    states, width, d = config.num_pooled, config.width, config.input_dim
    down = 2 * states * d * width * (width != d)
    blocks = config.num_blocks * _lap_block(config, states)
    connector = 2 * config.context_dim * (width + config.context_dim)
    pooled = down + blocks + 2 * states * width + connector
    return tokens * pooled + config.num_refiner_blocks * _lap_block(config, tokens)


def vision_flops(config: InternVLConfig) -> int:
    """Returns the FLOPs of the vision tower and the projector for one tile."""
    vision, width = config.vision, config.text.hidden_size
    d, patches = vision.hidden_size, vision.grid**2
    embed = 2 * patches * vision.patch_size**2 * vision.num_channels * d
    layers = vision.num_hidden_layers * _plain_layer(d, vision.intermediate_size, patches + 1)
    projector = 2 * config.tokens_per_tile * width * (d * config.merge**2 + width)
    return embed + layers + projector


def decoder_flops(config: Qwen2Config, tokens: int) -> int:
    """Returns the FLOPs of the hidden states of one row, without logits."""
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    kernels = 2 * tokens * d * (2 * d + 2 * kv + 3 * config.intermediate_size)
    return config.num_hidden_layers * (kernels + 4 * d * tokens**2)


def clip_flops(config: CLIPTextConfig, tokens: int) -> int:
    """Returns the FLOPs of the pooled vector of one prompt."""
    return config.num_hidden_layers * _plain_layer(config.hidden_size, config.intermediate_size, tokens)


def vae_encode_flops(config: VAEConfig, height: int, width: int) -> int:
    """Returns the FLOPs of encoding one image of `height` × `width` pixels."""
    widths, pixels = config.block_out_channels, height * width
    total = _conv(pixels, config.in_channels, widths[0])
    before = widths[0]
    for level, channels in enumerate(widths):
        total += _resnets(pixels, before, channels, config.layers_per_block)
        before = channels
        if level < len(widths) - 1:
            pixels //= 4
            total += _conv(pixels, channels, channels)
    return total + _vae_middle(config, pixels) + _conv(pixels, before, 2 * config.latent_channels)


def vae_decode_flops(config: VAEConfig, height: int, width: int) -> int:
    """Returns the FLOPs of decoding one image of `height` × `width` pixels."""
    widths = config.block_out_channels[::-1]
    pixels = height * width // 4 ** (len(widths) - 1)
    total = _conv(pixels, config.latent_channels, widths[0]) + _vae_middle(config, pixels)
    before = widths[0]
    for level, channels in enumerate(widths):
        total += _resnets(pixels, before, channels, config.layers_per_block + 1)
        before = channels
        if level < len(widths) - 1:
            pixels *= 4
            total += _conv(pixels, channels, channels)
    return total + _conv(pixels, before, config.out_channels)


def _transformer_attention(config: FluxConfig, tokens: int) -> int:
    return (config.num_layers + config.num_single_layers) * 4 * config.width * tokens**2


def _plain_layer(d: int, hidden: int, tokens: int) -> int:
    """Returns the FLOPs of attention with four square projections and of a two-layer MLP."""
    return 2 * tokens * d * (4 * d + 2 * hidden) + 4 * d * tokens**2


def _lap_block(config: DLAConfig, length: int) -> int:
    """Returns the FLOPs of one block of the DLA over a sequence of `length`."""
    width = config.width
    kv = width // config.num_heads * config.num_kv_heads
    kernels = width * (3 * width + 2 * kv + 3 * config.intermediate_size)  # queries, gate, output; keys, values; MLP
    return 2 * length * kernels + 4 * width * length**2


def _resnets(pixels: int, before: int, channels: int, depth: int) -> int:
    """Returns the FLOPs of `depth` residual blocks of one width, the first with `before` input channels."""
    first = _conv(pixels, before, channels) + _conv(pixels, channels, channels)
    shortcut = _conv(pixels, before, channels, kernel=1) if before != channels else 0
    return first + shortcut + 2 * (depth - 1) * _conv(pixels, channels, channels)


def _vae_middle(config: VAEConfig, pixels: int) -> int:
    d = config.block_out_channels[-1]
    attention = 4 * d * pixels**2 + 8 * pixels * d * d
    return 2 * _resnets(pixels, d, d, 1) + config.mid_block_add_attention * attention


def _conv(pixels: int, before: int, after: int, kernel: int = 3) -> int:
    """Returns the FLOPs of a square convolution with `pixels` output positions."""
    return 2 * pixels * kernel**2 * before * after
