"""Networks as pure functions of (params, arrays), independent of files and datasets."""

from mllmsubj.models.clip import CLIPTextConfig, CLIPTextModel
from mllmsubj.models.dit import FluxConfig, FluxTransformer
from mllmsubj.models.mllm import InternVL, InternVLConfig
from mllmsubj.models.qwen2 import Qwen2Config
from mllmsubj.models.vae import AutoencoderKL, VAEConfig
from mllmsubj.models.vit import ViTConfig

__all__ = [
    "AutoencoderKL",
    "CLIPTextConfig",
    "CLIPTextModel",
    "FluxConfig",
    "FluxTransformer",
    "InternVL",
    "InternVLConfig",
    "Qwen2Config",
    "VAEConfig",
    "ViTConfig",
]
