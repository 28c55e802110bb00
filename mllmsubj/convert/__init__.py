"""Conversion of published checkpoints to (config, params) of our models, and export of our LoRA and DLA."""

from mllmsubj.convert.clip import load_clip_text, open_clip_text
from mllmsubj.convert.dla import load_dla, save_dla
from mllmsubj.convert.flux import load_transformer, open_transformer
from mllmsubj.convert.internvl import load_mllm, open_mllm
from mllmsubj.convert.lora import fold_lora, load_lora, save_lora
from mllmsubj.convert.vae import load_vae, open_vae

__all__ = [
    "fold_lora",
    "load_clip_text",
    "load_dla",
    "load_lora",
    "load_mllm",
    "load_transformer",
    "load_vae",
    "open_clip_text",
    "open_mllm",
    "open_transformer",
    "open_vae",
    "save_dla",
    "save_lora",
]
