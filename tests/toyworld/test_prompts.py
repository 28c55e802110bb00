import dataclasses
import re

import numpy as np
import pytest

from mllmsubj.toyworld import Split, example
from mllmsubj.toyworld.prompts.phrases import NAMED_SUBJECTS, PATTERNS, PHRASES
from mllmsubj.toyworld.prompts.prompt import RELATIONAL_KINDS, SCENE_KINDS, WEIGHTS
from mllmsubj.toyworld.world.identity import Accessory, Color, Shape
from mllmsubj.toyworld.world.scene import SCENE_ATTRIBUTES, Column, Thing

OPPOSITE = {"left": "right", "right": "left"}


@pytest.fixture(scope="module")
def examples(drawn):
    return [e for examples in drawn.values() for e in examples]


def of(examples, kind):
    found = [e for e in examples if e.prompt.kind == kind]
    assert found, kind
    return found


def said(text, name):
    """Returns the values of an attribute that the text names."""
    return {value for value, ways in PHRASES[name].items() if any(re.search(rf"\b{way}\b", text) for way in ways)}


def test_phrases_unique():
    """Every attribute value has phrases, and no phrase has two meanings."""
    assert {name: set(map(str, kinds)) for name, kinds in SCENE_ATTRIBUTES.items()} == {
        name: set(values) for name, values in PHRASES.items()
    }
    ways = [way for values in PHRASES.values() for ways in values.values() for way in ways]
    assert len(ways) == len(set(ways))


def test_patterns_disjoint():
    """Training and test patterns are disjoint."""
    for patterns in PATTERNS.values():
        assert patterns.train
        assert patterns.other
        assert patterns.test
    train = [p for patterns in PATTERNS.values() for p in patterns.train + patterns.other]
    assert len(train) == len(set(train))
    assert not set(train) & {p for patterns in PATTERNS.values() for p in patterns.test}


def test_patterns_test_vocabulary():
    """Every word of the test patterns occurs in training prompts."""

    def words(*texts):
        return set(re.findall(r"\w+", " ".join(texts)))

    train = words(*(p for patterns in PATTERNS.values() for p in patterns.train + patterns.other))
    train |= words(*NAMED_SUBJECTS, *(way for values in PHRASES.values() for ways in values.values() for way in ways))
    assert not words(*(p for patterns in PATTERNS.values() for p in patterns.test)) - train


def test_example_other_patterns():
    """Training prompts follow the patterns `other` with that probability; test prompts do not depend on it."""

    def texts(other):
        return [example(Split.TRAIN, i, seed=3, other=other).prompt for i in range(60)]

    def follows(prompt, patterns):
        shape = "|".join(map(re.escape, patterns))
        return re.fullmatch(re.sub(r"\\{\w+\\}", ".+", shape), prompt.text)

    never, always = texts(0.0), texts(1.0)
    assert all(follows(prompt, PATTERNS[prompt.kind].train) for prompt in never)
    assert all(follows(prompt, PATTERNS[prompt.kind].other) for prompt in always)
    assert [example(Split.TEST, i, other=0.0) for i in range(20)] == [example(Split.TEST, i) for i in range(20)]


def test_prompt_text_matches_asks(examples):
    """The text of a plain prompt names exactly the scene attributes and the color that it asks for."""
    for e in examples:
        if e.prompt.kind in SCENE_KINDS:
            asked = dict(e.prompt.asks)
            for name in SCENE_ATTRIBUTES:
                assert said(e.prompt.text, name) == ({asked[name]} if name in asked else set()), e.prompt
            words = re.findall(r"\w+", e.prompt.text.replace("on green grass", ""))
            assert set(Color) & set(words) == ({asked["main"]} if "main" in asked else set())
            assert asked


def test_prompt_free(examples):
    """Scene attributes that a prompt does not ask for are free."""
    for e in examples:
        asked = {name for name, _ in e.prompt.asks}
        assert set(e.prompt.free) == set(SCENE_ATTRIBUTES) - asked
        assert asked - set(SCENE_ATTRIBUTES) <= {"main", "second", "accent"}


def test_prompt_recolor(examples):
    """A recolored subject gets a color that it does not have in the reference."""
    for e in of(examples, "recolour") + of(examples, "recolour in scene"):
        identity = e.reference.identity
        assert dict(e.prompt.asks)["main"] not in (identity.main, identity.second, identity.accent)


def test_prompt_reasoning(examples):
    """Reasoning prompts about the scene do not name the subject's shape; the other prompts about the scene do."""
    for e in examples:
        named = set(Shape) & set(re.findall(r"\w+", e.prompt.text))
        if e.prompt.reasoning and e.prompt.kind in SCENE_KINDS:
            assert not named
            assert ("animal" if e.reference.identity.is_animal else "character") in e.prompt.text
        elif not e.prompt.reasoning:
            assert e.prompt.kind in SCENE_KINDS
            assert named == {e.reference.identity.shape}
        if e.prompt.kind in RELATIONAL_KINDS:
            assert e.prompt.reasoning


def test_prompt_swap_colors(examples):
    for e in of(examples, "swap colours"):
        identity = e.reference.identity
        assert dict(e.prompt.asks) == {"main": identity.second, "second": identity.main}
    for e in of(examples, "swap with accessory"):
        identity = e.reference.identity
        assert identity.accessory is not Accessory.NONE
        assert str(identity.accessory) in e.prompt.text
        assert dict(e.prompt.asks) == {"main": identity.accent, "accent": identity.main}


def test_prompt_reverse_pose(examples):
    for e in of(examples, "turn round"):
        assert dict(e.prompt.asks) == {"facing": OPPOSITE[e.reference.scene.pose.facing]}
    for e in of(examples, "other side"):
        assert e.reference.scene.pose.column is not Column.CENTRE
        assert dict(e.prompt.asks) == {"column": OPPOSITE[e.reference.scene.pose.column]}


def test_prompt_relational(examples):
    kinds = {"swap colours", "swap with accessory", "turn round", "other side"}
    assert {e.prompt.kind for e in examples if e.prompt.is_relational} == kinds
    assert all(e.prompt.is_relational for e in examples if e.prompt.kind in kinds)


def test_prompt_same_as_reference(examples):
    """Prompts that keep an attribute of the reference ask for its value without naming it."""
    for kind, kept, told in (
        ("same place", "background", "time"),
        ("same time", "time", "background"),
        ("same company", "thing", "background"),
    ):
        for e in of(examples, kind):
            asked, reference = dict(e.prompt.asks), e.reference.scene.attributes()
            assert set(asked) == {kept, told}
            assert asked[kept] == reference[kept]
            assert asked[told] != reference[told]
            assert said(e.prompt.text, told) == {asked[told]}
            assert said(e.prompt.text, kept) == set()


def test_prompt_company(examples):
    """The reference contains a thing wherever the prompt keeps or removes it."""
    for e in of(examples, "without company"):
        assert dict(e.prompt.asks) == {"thing": Thing.NONE}
    for e in of(examples, "without company") + of(examples, "same company"):
        assert e.reference.scene.thing is not Thing.NONE


def test_prompt_kind_shares(examples):
    reasoning = np.mean([e.prompt.reasoning for e in examples])
    plain = np.mean([e.prompt.kind == "scene" and not e.prompt.reasoning for e in examples])
    assert abs(reasoning - 1 / 3) < 0.05
    assert abs(plain - 1 / 2) < 0.05
    asked = {name for e in examples for name, _ in e.prompt.asks}
    assert asked == {*SCENE_ATTRIBUTES, "main", "second", "accent"}
    assert set(WEIGHTS) == set(SCENE_ATTRIBUTES)
    assert sum(WEIGHTS.values()) == pytest.approx(1)


def test_prompt_frozen(examples):
    with pytest.raises(dataclasses.FrozenInstanceError):
        examples[0].prompt.text = ""
