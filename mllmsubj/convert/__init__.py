"""Folders that diffusers and transformers saved -> (config, params) of our models."""

from mllmsubj.convert.flux import load_transformer

__all__ = ["load_transformer"]
