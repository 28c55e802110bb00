"""Networks as pure functions of (params, arrays); they know nothing of disk, datasets or meshes."""

from mllmsubj.models.dit import FluxConfig, FluxTransformer

__all__ = ["FluxConfig", "FluxTransformer"]
