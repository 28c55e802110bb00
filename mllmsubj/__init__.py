"""Subject-driven image generation with a multimodal LLM, in JAX/Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mllmsubj.inference.pipeline import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    """`mllmsubj.Pipeline`, imported when it is first asked for: the package itself starts no JAX."""
    if name == "Pipeline":
        from mllmsubj.inference.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
