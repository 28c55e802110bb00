"""Training and test examples as a pure function of (split, index, seed).

Neither references nor targets of the training split contain:
* held-out identities: a tenth of all, by a hash (`identity_is_held_out`);
* held-out combinations of color and shape: for each shape one of ten main colors (`combination_is_held_out`).
Its prompts never use the sentence patterns named `test` in `phrases.PATTERNS`.
Every test example has a held-out prompt and a held-out subject: at even indices a held-out identity whose combination
occurs in training, at odd indices a held-out combination.
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
    """Split of the dataset."""

    TRAIN = "train"
    TEST = "test"


class HeldOut(StrEnum):
    """Property of an identity that is held out of training."""

    NOTHING = "nothing"
    IDENTITY = "identity"
    COMBINATION = "combination"


@dataclass(frozen=True)
class Picture:
    """A subject in a scene."""

    identity: Identity
    scene: Scene

    def render(self, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """Returns the pixels as 8-bit RGB."""
        return render(self.identity, self.scene, size)


@dataclass(frozen=True)
class Example:
    """A reference, a prompt about it, and a picture that follows the prompt.

    The target's attributes that the prompt does not request are random, except for the pose: by default it is the
    canonical pose (`scene.CANONICAL_POSE`), since a prompt would mention another one. References have random poses.
    """

    reference: Picture
    prompt: Prompt
    target: Picture
    held_out: HeldOut
    """Held-out property of the reference's identity."""


def held_out(identity: Identity) -> HeldOut:
    """Returns the held-out property of an identity; a held-out combination takes precedence."""
    if combination_is_held_out(identity):
        return HeldOut.COMBINATION
    return HeldOut.IDENTITY if identity_is_held_out(identity) else HeldOut.NOTHING


def example(split: Split, index: int, seed: int = 0, pose_randomness: float = 0.0, other: float = OTHER) -> Example:
    """Returns the example with an index of at least 0, identical on every machine.

    The splits share no subject and no prompt. `pose_randomness`: for the target's pose, where the prompt does not
    request it; see `random_scene`. `other`: see `write`.
    """
    rng = np.random.default_rng([seed, list(Split).index(split), index])
    kind, reasoning = random_kind(rng)  # once, so that rejections below do not change the frequency of kinds
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
