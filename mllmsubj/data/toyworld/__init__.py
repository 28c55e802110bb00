"""Toyworld: drawn subjects in drawn scenes, with prompts and the truth about all of it. Needs NumPy and Pillow only."""

from mllmsubj.data.toyworld.examples import Example, HeldOut, Picture, Split, example
from mllmsubj.data.toyworld.identity import Identity, random_identity
from mllmsubj.data.toyworld.prompts import Prompt, caption
from mllmsubj.data.toyworld.render import render
from mllmsubj.data.toyworld.scene import Pose, Scene, random_scene
from mllmsubj.data.toyworld.source import ToyworldSource

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
