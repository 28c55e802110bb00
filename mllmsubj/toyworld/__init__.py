"""Toyworld: drawn subjects in drawn scenes, with prompts and ground truth. Needs only NumPy and Pillow."""

from mllmsubj.toyworld.dataset.examples import Example, HeldOut, Picture, Split, example
from mllmsubj.toyworld.dataset.source import ToyworldSource
from mllmsubj.toyworld.prompts.prompt import Prompt, caption
from mllmsubj.toyworld.world.identity import Identity, random_identity
from mllmsubj.toyworld.world.render import render
from mllmsubj.toyworld.world.scene import Pose, Scene, random_scene

__all__ = [
    "Example",
    "HeldOut",
    "Identity",
    "Picture",
    "Pose",
    "Prompt",
    "Scene",
    "Split",
    "ToyworldSource",
    "caption",
    "example",
    "random_identity",
    "random_scene",
    "render",
]
