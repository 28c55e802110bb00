"""Questions about toyworld pictures and their answers: the VQA data that the tiny MLLM is pretrained on."""

from collections.abc import Mapping

from mllmsubj.toyworld.dataset.examples import Picture

QUESTIONS: Mapping[str, str] = {
    "shape": "what is it?",
    "main": "which colour is its body?",
    "second": "which colour are its details?",
    "texture": "how is it patterned?",
    "accessory": "what does it wear?",
    "accent": "which colour is what it wears?",
    "background": "where is it?",
    "time": "which time of day is it?",
    "column": "is it left, right or in the centre?",
    "row": "is it in front or at the back?",
    "size": "how large is it?",
    "facing": "which way does it look?",
    "tilt": "how does it lean?",
    "thing": "what is beside it?",
}
"""Attribute of the identity or the scene -> its question."""

DESCRIBE = "describe the picture"
"""Instruction whose answer is the caption."""


def answer(picture: Picture, attribute: str) -> str:
    """Returns the value in one word; "none" for the accent of a subject without an accessory."""
    values = picture.scene.attributes() | vars(picture.identity)
    return str(values[attribute] or "none")
