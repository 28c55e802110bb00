"""Prompts with the attributes that they request: the ground truth for evaluating generated images."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from mllmsubj.toyworld.prompts.phrases import ANIMAL_SUBJECTS, CHARACTER_SUBJECTS, NAMED_SUBJECTS, PATTERNS, PHRASES
from mllmsubj.toyworld.world.identity import Accessory, Color, Identity, pick
from mllmsubj.toyworld.world.scene import POSE_ATTRIBUTES, SCENE_ATTRIBUTES, Column, Facing, Scene, Thing, Time

SCENE_KINDS = ("scene", "recolour", "recolour in scene")
"""Kinds that name the subject's shape, unless they are reasoning prompts: "the animal in the picture, but blue"."""
RELATIONAL_KINDS = tuple(kind for kind in PATTERNS if kind not in SCENE_KINDS)
"""Kinds whose requested values depend on the reference; they are always reasoning prompts."""
OTHER = 0.5
"""Probability of a pattern in `Patterns.other`, rather than in `Patterns.train`, in the training split."""


@dataclass(frozen=True)
class Prompt:
    """A prompt's text and its meaning."""

    text: str
    kind: str
    """A key of `phrases.PATTERNS`."""
    asks: tuple[tuple[str, StrEnum], ...]
    """Requested attributes and values, of the scene (`SCENE_ATTRIBUTES`) or the identity (main, second, accent)."""
    reasoning: bool
    """Whether the prompt can only be resolved with the reference."""

    @property
    def free(self) -> tuple[str, ...]:
        """Scene attributes that may take any value. Identity attributes that are not requested must stay unchanged."""
        asked = dict(self.asks)
        return tuple(name for name in SCENE_ATTRIBUTES if name not in asked)

    @property
    def is_relational(self) -> bool:
        """Whether it requests a color or pose that depends on the reference's own: a swap, a turn, the other side."""
        surroundings = SCENE_ATTRIBUTES.keys() - set(POSE_ATTRIBUTES)
        return self.kind in RELATIONAL_KINDS and not surroundings >= {name for name, _ in self.asks}

    def identity(self, reference: Identity) -> Identity:
        """Returns the subject of a correct picture."""
        return reference.replace(**{name: value for name, value in self.asks if name not in SCENE_ATTRIBUTES})

    def scene(self, scene: Scene) -> Scene:
        """Returns `scene` with the requested attributes."""
        return scene.replace(**{name: value for name, value in self.asks if name in SCENE_ATTRIBUTES})


def random_kind(rng: np.random.Generator) -> tuple[str, bool]:
    """Returns a kind of prompt and whether it is a reasoning prompt.

    Half of the prompts are plain scenes, a sixth recolor the subject, and a third are reasoning prompts.
    """
    chance = rng.random()
    if chance < 1 / 2:
        return "scene", False
    if chance < 2 / 3:
        return pick(rng, SCENE_KINDS[1:]), False
    return pick(rng, SCENE_KINDS + RELATIONAL_KINDS), True


def fits(kind: str, identity: Identity, reference: Scene) -> bool:
    """Returns whether a kind of prompt makes sense for a reference, such as one with a second object to remove."""
    match kind:
        case "swap with accessory":
            return identity.accessory is not Accessory.NONE
        case "other side":
            return reference.pose.column is not Column.CENTRE
        case "same company" | "without company":
            return reference.thing is not Thing.NONE
    return True


def write(
    rng: np.random.Generator,
    kind: str,
    reasoning: bool,
    identity: Identity,
    reference: Scene,
    held_out: bool,
    other: float = OTHER,
) -> Prompt:
    """Returns a random prompt of a kind that `fits` the identity and the reference.

    `held_out`: whether it follows the sentence patterns of the test split; otherwise `other` is the probability of
    `Patterns.other`.
    """
    asks, clauses = _meaning(rng, kind, identity, reference)
    if reasoning and (kind in SCENE_KINDS or rng.random() < 0.5):
        subject = pick(rng, ANIMAL_SUBJECTS if identity.is_animal else CHARACTER_SUBJECTS)
    else:
        subject = pick(rng, NAMED_SUBJECTS).format(shape=identity.shape)
    text = _pattern(rng, kind, held_out, other).format(
        subject=subject,
        clauses=", ".join(clauses),
        colour=asks.get("main"),
        accessory=identity.accessory,
    )
    return Prompt(text, kind, tuple(asks.items()), reasoning)


def caption(
    identity: Identity, scene: Scene, only: Container[str] = SCENE_ATTRIBUTES, subject: str | None = None
) -> str:
    """Returns a description of a picture with all its attributes.

    `only`: attributes of the scene that are mentioned; `subject`: text that replaces the description of the identity.
    """
    said = [PHRASES[name][value][0] for name, value in scene.attributes().items() if name in only]
    return ", ".join([subject or identity.describe(), *said])


def random_caption(
    rng: np.random.Generator, identity: Identity, scene: Scene, only: Container[str], held_out: bool
) -> str:
    """Returns a random description, in the words of prompts, of the attributes in `only`; empty if there are none.

    `held_out`: see `write`.
    """
    subject = pick(rng, NAMED_SUBJECTS).format(shape=identity.shape)
    if "shape" not in only:
        subject = pick(rng, ANIMAL_SUBJECTS if identity.is_animal else CHARACTER_SUBJECTS)
    elif "main" in only:
        subject = identity.describe()
    clauses = [pick(rng, PHRASES[name][value]) for name, value in scene.attributes().items() if name in only]
    if clauses:
        return _pattern(rng, "scene", held_out, OTHER).format(subject=subject, clauses=", ".join(clauses))
    return subject if "shape" in only else ""


def _pattern(rng: np.random.Generator, kind: str, held_out: bool, other: float) -> str:
    patterns = PATTERNS[kind]
    if held_out:
        return pick(rng, patterns.test)
    return pick(rng, patterns.other if other and rng.random() < other else patterns.train)


def _meaning(
    rng: np.random.Generator, kind: str, identity: Identity, reference: Scene
) -> tuple[dict[str, StrEnum], list[str]]:
    """Returns the requested attributes, and the clauses for those that have clauses of their own."""
    said: dict[str, StrEnum] = {}
    asks = _relation(kind, identity, reference)
    match kind:
        case "scene":
            said = _wishes(rng, 1 + int(rng.integers(3)))
        case "recolour" | "recolour in scene":
            unused = [c for c in Color if c not in (identity.main, identity.second, identity.accent)]
            asks["main"] = pick(rng, unused)
            said = _wishes(rng, 1) if kind == "recolour in scene" else {}
        case "same place":
            said["time"] = pick(rng, [time for time in Time if time is not reference.time])
        case "same time" | "same company":
            others = [place for place in SCENE_ATTRIBUTES["background"] if place is not reference.background]
            said["background"] = pick(rng, others)
    return asks | said, [pick(rng, PHRASES[name][value]) for name, value in said.items()]


def _relation(kind: str, identity: Identity, reference: Scene) -> dict[str, StrEnum]:
    """Returns the requested attributes of a relational kind, resolved with the reference; empty for other kinds."""
    pose = reference.pose
    match kind:
        case "swap colours":
            return {"main": identity.second, "second": identity.main}
        case "swap with accessory" if identity.accent is not None:
            return {"main": identity.accent, "accent": identity.main}
        case "turn round":
            return {"facing": Facing.LEFT if pose.facing is Facing.RIGHT else Facing.RIGHT}
        case "other side":
            return {"column": Column.LEFT if pose.column is Column.RIGHT else Column.RIGHT}
        case "same place":
            return {"background": reference.background}
        case "same time":
            return {"time": reference.time}
        case "same company":
            return {"thing": reference.thing}
        case "without company":
            return {"thing": Thing.NONE}
    return {}


WEIGHTS: Mapping[str, float] = {
    "background": 0.3,
    "time": 0.15,
    "thing": 0.15,
    "column": 0.1,
    "row": 0.05,
    "size": 0.1,
    "facing": 0.1,
    "tilt": 0.05,
}
"""Relative frequency of each attribute among those that prompts request."""


def _wishes(rng: np.random.Generator, count: int) -> dict[str, StrEnum]:
    """Returns `count` random scene attributes with random values, in the order of `SCENE_ATTRIBUTES`."""
    names = list(WEIGHTS)
    chosen = rng.choice(len(names), count, replace=False, p=list(WEIGHTS.values()))
    wanted = {names[i] for i in chosen}
    return {name: pick(rng, tuple(kinds)) for name, kinds in SCENE_ATTRIBUTES.items() if name in wanted}
