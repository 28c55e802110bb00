import numpy as np
import pytest

from mllmsubj.toyworld import Split, ToyworldSource
from mllmsubj.toyworld.benchmark.tallies import (
    RECOLOURING,
    accuracy,
    all_right,
    copy_chance,
    identity,
    pose_copy,
    prompt,
    reasoning,
    truth,
)
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, numbers
from tests.toyworld.benchmark.cases import BARE, case, read, stacked


def one(statistic, tally):
    return statistic(tally, np.ones((1, len(tally.right))))[0]


def counts(tally):
    """Name -> (right, judged) over all pictures, where anything is judged."""
    found = zip(tally.names, tally.right.sum(0).tolist(), tally.judged.sum(0).tolist(), strict=True)
    return {name: (right, judged) for name, right, judged in found if judged}


def test_identity_is_the_references_own():
    example = case(("background", "beach"))
    tally = identity(*stacked((example, read(example, main="green", accent="none"))))
    assert counts(tally) == {
        **dict.fromkeys(("shape", "second", "texture", "accessory"), (1, 1)),
        **dict.fromkeys(("main", "accent"), (0, 1)),
    }
    assert one(accuracy, tally) == pytest.approx(4 / 6)
    assert one(all_right, tally) == 0


def test_a_recoloured_attribute_counts_for_the_prompt_alone():
    example = case(("main", "green"), ("second", "red"))
    readings = stacked((example, read(example, second="blue")))  # the reference's: the prompt asked for red
    assert {"main", "second"} & set(counts(identity(*readings))) == set()
    assert one(all_right, identity(*readings)) == 1
    assert counts(prompt(*readings)) == {RECOLOURING: (1, 2)}
    assert one(accuracy, prompt(*readings)) == 0.5
    assert one(all_right, prompt(*readings)) == 0


def test_nobodys_accent_is_not_judged_but_its_accessory_is():
    example = case(("time", "day"), identity=BARE)
    tally = identity(*stacked((example, read(example, accessory="hat", accent="pink"))))
    assert "accent" not in counts(tally)
    assert counts(tally)["accessory"] == (0, 1)


def test_only_what_is_asked_of_the_scene_is_judged():
    example = case(("background", "castle"), ("facing", "left"))
    tally = prompt(*stacked((example, read(example, facing="right", time="sunset", column="centre"))))
    assert counts(tally) == {"background": (1, 1), "facing": (0, 1)}


def test_accuracy_is_a_mean_over_attributes_not_over_questions():
    often, once = case(("time", "day")), case(("tilt", "left"))
    cases = [(often, read(often))] * 3 + [(once, read(once, tilt="right"))]
    assert one(accuracy, prompt(*stacked(*cases))) == 0.5
    assert one(all_right, prompt(*stacked(*cases))) == 0.75


def test_reasoning_is_the_same_on_reasoning_prompts():
    plain, asked = case(("time", "day")), case(("facing", "right"), reasoning=True)
    tally = reasoning(*stacked((plain, read(plain, time="night")), (asked, read(asked))))
    assert counts(tally) == {"facing": (1, 1)}
    assert one(accuracy, tally) == one(all_right, tally) == 1
    nothing = reasoning(*stacked((plain, read(plain))))
    assert np.isnan([one(accuracy, nothing), one(all_right, nothing)]).all()


def test_pose_copies_are_counted_where_the_prompt_leaves_it_free():
    example = case(("facing", "left"))  # the reference's own: no copy, since it is asked
    tally = pose_copy(*stacked((example, read(example, column="left", row="back"))))
    assert counts(tally) == {"column": (1, 1), "row": (1, 1), "size": (0, 1), "tilt": (0, 1)}
    assert one(accuracy, tally) == 0.5
    assert copy_chance(tally) == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 1 / 3) / 4)


def test_chance_is_what_independent_renders_get():
    source = ToyworldSource(Split.TEST, 2000)
    examples = [source.example(i) for i in range(len(source))]
    targets = np.stack([numbers(example.target.identity, example.target.scene) for example in examples])
    tally = pose_copy(examples, targets)
    assert copy_chance(tally) == pytest.approx(0.4)
    assert one(accuracy, tally) == pytest.approx(0.4, abs=0.02)
    for right in (identity, prompt, reasoning):
        assert one(all_right, right(examples, targets)) == 1


def test_weights_count_pictures():
    good, bad = case(("time", "day")), case(("time", "day"))
    tally = prompt(*stacked((good, read(good)), (bad, read(bad, time="night"))))
    assert accuracy(tally, np.asarray([[3.0, 1.0], [0.0, 2.0]])).tolist() == [0.75, 0.0]


def test_the_probe_is_judged_by_every_attribute():
    example = case(("time", "day"), identity=BARE)
    tally = truth(*stacked((example, read(example, accent="pink"))))
    assert tally.names == tuple(ATTRIBUTES)
    assert tally.judged.all()
    assert counts(tally)["accent"] == (0, 1)
    assert tally.right.sum() == len(ATTRIBUTES) - 1
