"""Training and test examples as a pure function of (split, index, seed).

What is held out of training, references and targets alike:
* identities: a tenth of all, by a hash (`identity_is_held_out`);
* colour-by-shape combinations: for each shape one main colour of ten (`combination_is_held_out`);
* prompts: the sentence patterns named `test` in `phrases.PATTERNS`.
Every test example has a held-out prompt and a held-out subject: a held-out identity of a combination that
training knows at even indices, a held-out combination at odd ones.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import UInt8

from mllmsubj.toyworld.prompts.prompt import OTHER, Prompt, fits, random_kind, write
from mllmsubj.toyworld.world.identity import Identity, combination_is_held_out, identity_is_held_out, random_identity
from mllmsubj.toyworld.world.render import render
from mllmsubj.toyworld.world.scene import Scene, random_scene


class Split(StrEnum):
    """The two parts of the world."""

    TRAIN = "train"
    TEST = "test"


class HeldOut(StrEnum):
    """What training never showed of an identity."""

    NOTHING = "nothing"
    IDENTITY = "identity"
    COMBINATION = "combination"


@dataclass(frozen=True)
class Picture:
    """A subject in a scene."""

    identity: Identity
    scene: Scene

    def render(self, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """Its pixels, 8-bit RGB."""
        return render(self.identity, self.scene, size)


@dataclass(frozen=True)
class Example:
    """A reference, a prompt about it, and a picture that follows the prompt.

    What the prompt leaves free is random there, but for the pose, which is the usual one (`scene.USUAL`) unless another
    is asked for of `example`: a prompt says what is out of the ordinary. References stand in any pose.
    """

    reference: Picture
    prompt: Prompt
    target: Picture
    held_out: HeldOut
    """Of the reference's identity."""


def held_out(identity: Identity) -> HeldOut:
    """What training never showed of it."""
    if combination_is_held_out(identity):
        return HeldOut.COMBINATION
    return HeldOut.IDENTITY if identity_is_held_out(identity) else HeldOut.NOTHING


def example(split: Split, index: int, seed: int = 0, pose_randomness: float = 0.0, other: float = OTHER) -> Example:
    """The example of that number, at least 0; the same on every machine. The splits share no subject and no text.

    `pose_randomness`: of the target's pose, where the prompt leaves it free; see `random_scene`. `other`: see `write`.
    """
    rng = np.random.default_rng([seed, list(Split).index(split), index])
    kind, reasoning = random_kind(rng)  # once: what is refused below shall not change how often a kind comes
    testing = split is Split.TEST
    wanted = (HeldOut.IDENTITY, HeldOut.COMBINATION)[index % 2] if testing else HeldOut.NOTHING
    while True:
        identity = random_identity(rng)
        if held_out(identity) is not wanted:
            continue
        scene = random_scene(rng)
        if not fits(kind, identity, scene):
            continue
        prompt = write(rng, kind, reasoning, identity, scene, held_out=testing, other=other)
        target = prompt.identity(identity)
        if (held_out(target) is not HeldOut.NOTHING) == testing:
            shown = Picture(target, prompt.scene(random_scene(rng, pose_randomness)))
            return Example(Picture(identity, scene), prompt, shown, wanted)
