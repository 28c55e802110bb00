"""The paper's model at full size: InternVL3-8B reads, FLUX.1-dev draws, LoRA of rank 512.

    mllmsubj generate --checkpoint=DIR --reference=dog.jpg --prompt="a dog on the moon" --output=dog.png

where DIR was imported from InternVL3-8B-hf, FLUX.1-dev's transformer and vae, and CLIP ViT-L/14's text tower.
Parameters: MLLM 7,944,373,760; DiT 11,901,408,320 without its adapters. Expected on DreamBench (paper):
DINO-I 0.748, CLIP-I 0.844, CLIP-T 0.301.

Variants are slices, `configs/paper.py:v5p-64`; what fits where was found by `mllmsubj compile` and is in docs/tpu.md.
"""

import math

from ml_collections import ConfigDict

from mllmsubj.config.schema import default_config

SLICES = {
    # Examples a chip in training and pictures a chip in sampling: as many as keep the weights' way over the links
    # short beside the work on them, and fit. Without remat where activations fit: a third less to compute.
    "v5e-64": dict(topology="v5e:8x8", train=1, sample=1, remat=True),
    "v5e-256": dict(topology="v5e:16x16", train=1, sample=1, remat=True),
    "v5p-64": dict(topology="v5p:2x4x4", train=2, sample=4, remat=False),
    "v5p-128": dict(topology="v5p:4x4x4", train=2, sample=4, remat=False),
    "v6e-16": dict(topology="v6e:4x4", train=4, sample=6, remat=True),
    "v6e-64": dict(topology="v6e:8x8", train=4, sample=6, remat=True),
}
"""Accelerator type -> its topology, and what the config makes of it."""

COLAB = {"colab-v5e-1": "v5e:1x1", "colab-v6e-1": "v6e:1x1"}
"""One chip, to draw with: 16 and 32 GB."""


def get_config(variant: str = "") -> ConfigDict:
    """The full-size experiment, perhaps for a slice: a key of SLICES or of COLAB."""
    config = default_config()
    if variant in SLICES:
        chips = math.prod(map(int, SLICES[variant]["topology"].partition(":")[2].split("x")))
        config.compute.remat = SLICES[variant]["remat"]
        config.train.batch_size = SLICES[variant]["train"] * chips
        config.sampling.update(height=1024, width=1024, batch_size=SLICES[variant]["sample"] * chips)
    elif variant in COLAB:
        config.model.frozen_dtype = "int8"
        config.compute.offload = True
        config.sampling.batch_size = 1
    elif variant:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join([*SLICES, *COLAB])}")
    model = config.model

    model.mllm = ConfigDict()
    model.mllm.vision = ConfigDict()  # InternViT-300M
    model.mllm.vision.hidden_size = 1024
    model.mllm.vision.num_hidden_layers = 24
    model.mllm.vision.num_attention_heads = 16
    model.mllm.vision.intermediate_size = 4096
    model.mllm.vision.image_size = 448  # pixels of a tile's side
    model.mllm.vision.patch_size = 14  # pixels
    model.mllm.vision.num_channels = 3
    model.mllm.vision.attention_bias = True
    model.mllm.vision.use_qk_norm = False
    model.mllm.vision.norm_type = "layer_norm"
    model.mllm.vision.layer_norm_eps = 1e-6
    model.mllm.vision.layer_scale_init_value = 0.1
    model.mllm.text = ConfigDict()  # Qwen2.5-7B
    model.mllm.text.vocab_size = 151674
    model.mllm.text.hidden_size = 3584
    model.mllm.text.intermediate_size = 18944
    model.mllm.text.num_hidden_layers = 28
    model.mllm.text.num_attention_heads = 28
    model.mllm.text.num_key_value_heads = 4
    model.mllm.text.rms_norm_eps = 1e-6
    model.mllm.text.rope_theta = 1_000_000.0
    model.mllm.text.max_position_embeddings = 32768
    model.mllm.image_token_id = 151667
    model.mllm.downsample_ratio = 0.5  # 2 x 2 patches become one token: 256 tokens a tile
    model.mllm.tie_word_embeddings = False

    model.dla = ConfigDict()
    model.dla.num_states = 29  # embeddings and 28 layers
    model.dla.states = (0, 29)  # those that are pooled: from the first up to but without the second
    model.dla.shared = False  # True: one LAP for text and image tokens alike
    model.dla.input_dim = 3584
    model.dla.width = 3584  # smaller than input_dim: a bottleneck
    model.dla.num_heads = 28
    model.dla.num_kv_heads = 28
    model.dla.intermediate_size = 9472
    model.dla.num_blocks = 2
    model.dla.num_refiner_blocks = 0  # 2: let pooled tokens look at each other
    model.dla.norm_states = True  # a learned RMS norm per layer
    model.dla.eps = 1e-6
    model.dla.context_dim = 4096

    model.vae = ConfigDict()  # FLUX.1's
    model.vae.in_channels = 3
    model.vae.out_channels = 3
    model.vae.block_out_channels = (128, 256, 512, 512)
    model.vae.layers_per_block = 2
    model.vae.latent_channels = 16
    model.vae.norm_num_groups = 32
    model.vae.mid_block_add_attention = True
    model.vae.scaling_factor = 0.3611
    model.vae.shift_factor = 0.1159

    model.clip = ConfigDict()  # CLIP ViT-L/14's text tower
    model.clip.vocab_size = 49408
    model.clip.hidden_size = 768
    model.clip.intermediate_size = 3072
    model.clip.num_hidden_layers = 12
    model.clip.num_attention_heads = 12
    model.clip.max_position_embeddings = 77
    model.clip.hidden_act = "quick_gelu"
    model.clip.layer_norm_eps = 1e-5
    model.clip.eos_token_id = 2  # transformers' sign for "pool at the largest id"

    model.transformer = ConfigDict()  # FLUX.1-dev
    model.transformer.in_channels = 64
    model.transformer.num_layers = 19
    model.transformer.num_single_layers = 38
    model.transformer.attention_head_dim = 128
    model.transformer.num_attention_heads = 24
    model.transformer.joint_attention_dim = 4096
    model.transformer.pooled_projection_dim = 768
    model.transformer.guidance_embeds = True
    model.transformer.axes_dims_rope = (16, 56, 56)

    model.lora = ConfigDict()
    model.lora.rank = 512
    model.lora.alpha = 512.0
    # The attention projections of every block. A single block's output projection is `proj_out`, which it shares
    # with its MLP; UNO adapts it too.
    model.lora.targets = (
        *("to_q", "to_k", "to_v", "to_out"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        "proj_out",
    )
    return config
