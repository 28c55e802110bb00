"""Folders that diffusers and transformers saved -> (config, params) of our models."""

from mllmsubj.convert.clip import load_clip_text
from mllmsubj.convert.flux import load_transformer
from mllmsubj.convert.internvl import load_mllm
from mllmsubj.convert.vae import load_vae

__all__ = ["load_clip_text", "load_mllm", "load_transformer", "load_vae"]
