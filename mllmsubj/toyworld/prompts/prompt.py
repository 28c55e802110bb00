"""Prompts, with what each asks for: the truth that pictures are judged by."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from mllmsubj.toyworld.prompts.phrases import ANIMAL_SUBJECTS, CHARACTER_SUBJECTS, NAMED_SUBJECTS, PATTERNS, PHRASES
from mllmsubj.toyworld.world.identity import Accessory, Colour, Identity, pick
from mllmsubj.toyworld.world.scene import POSE_ATTRIBUTES, SCENE_ATTRIBUTES, Column, Facing, Scene, Thing, Time

SCENE_KINDS = ("scene", "recolour", "recolour in scene")
"""Kinds that name the subject's shape, or else are reasoning prompts: "the animal in the picture, but blue"."""
RELATIONS = tuple(kind for kind in PATTERNS if kind not in SCENE_KINDS)
"""Kinds whose answer depends on the reference: always reasoning prompts."""
OTHER = 0.5
"""How often training takes one of its other sentence patterns."""


@dataclass(frozen=True)
class Prompt:
    """A text and its meaning."""

    text: str
    kind: str
    """A key of `phrases.PATTERNS`."""
    asks: tuple[tuple[str, StrEnum], ...]
    """Names and values asked for: of the scene (`SCENE_ATTRIBUTES`) or of the identity (main, second, accent)."""
    reasoning: bool
    """Whether only a look at the reference tells what is asked."""

    @property
    def free(self) -> tuple[str, ...]:
        """The scene's attributes that may be anything; all that is not asked of the identity stays as it is."""
        asked = dict(self.asks)
        return tuple(name for name in SCENE_ATTRIBUTES if name not in asked)

    @property
    def is_relational(self) -> bool:
        """Whether it asks for a colour or pose that only the reference's own tells: a swap, a turn, the other side."""
        surroundings = SCENE_ATTRIBUTES.keys() - set(POSE_ATTRIBUTES)
        return self.kind in RELATIONS and not surroundings >= {name for name, _ in self.asks}

    def identity(self, reference: Identity) -> Identity:
        """The subject that a right picture shows."""
        return reference.replace(**{name: value for name, value in self.asks if name not in SCENE_ATTRIBUTES})

    def scene(self, scene: Scene) -> Scene:
        """`scene` with what is asked for."""
        return scene.replace(**{name: value for name, value in self.asks if name in SCENE_ATTRIBUTES})


def random_kind(rng: np.random.Generator) -> tuple[str, bool]:
    """A kind of prompt and whether it is a reasoning prompt: half scenes, a sixth recolouring, a third reasoning."""
    chance = rng.random()
    if chance < 1 / 2:
        return "scene", False
    if chance < 2 / 3:
        return pick(rng, SCENE_KINDS[1:]), False
    return pick(rng, SCENE_KINDS + RELATIONS), True


def fits(kind: str, identity: Identity, reference: Scene) -> bool:
    """Whether the reference gives the prompt a meaning, such as a second object to take away."""
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
    """Returns a random prompt of a kind that applies to the identity and the reference.

    `held_out`: whether it follows the sentence patterns of the test split; otherwise `other` is the probability of the
    less frequent patterns of training.
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
    """Describes a picture with all its attributes.

    `only`: attributes of the scene that are mentioned; `subject`: text that replaces the attributes of the identity.
    """
    said = [PHRASES[name][value][0] for name, value in scene.attributes().items() if name in only]
    return ", ".join([subject or identity.describe(), *said])


def write_caption(
    rng: np.random.Generator, identity: Identity, scene: Scene, only: Container[str], held_out: bool
) -> str:
    """The attributes in `only` in the words of prompts, nothing for none. `held_out`: see `write`."""
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
    """What is asked for, and the part of it that is said in clauses of its own."""
    said: dict[str, StrEnum] = {}
    asks = _relation(kind, identity, reference)
    match kind:
        case "scene":
            said = _wishes(rng, 1 + int(rng.integers(3)))
        case "recolour" | "recolour in scene":
            unused = [c for c in Colour if c not in (identity.main, identity.second, identity.accent)]
            asks["main"] = pick(rng, unused)
            said = _wishes(rng, 1) if kind == "recolour in scene" else {}
        case "same place":
            said["time"] = pick(rng, [time for time in Time if time is not reference.time])
        case "same time" | "same company":
            others = [place for place in SCENE_ATTRIBUTES["background"] if place is not reference.background]
            said["background"] = pick(rng, others)
    return asks | said, [pick(rng, PHRASES[name][value]) for name, value in said.items()]


def _relation(kind: str, identity: Identity, reference: Scene) -> dict[str, StrEnum]:
    """What a relation asks for, resolved by the reference."""
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
"""How often a scene prompt's wishes name each attribute."""


def _wishes(rng: np.random.Generator, count: int) -> dict[str, StrEnum]:
    """Some attributes of the scene with any values, in the order of `SCENE_ATTRIBUTES`."""
    names = list(WEIGHTS)
    chosen = rng.choice(len(names), count, replace=False, p=list(WEIGHTS.values()))
    wanted = {names[i] for i in chosen}
    return {name: pick(rng, tuple(kinds)) for name, kinds in SCENE_ATTRIBUTES.items() if name in wanted}
