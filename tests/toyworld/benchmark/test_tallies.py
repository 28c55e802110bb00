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
    """Returns name -> (correct, evaluated) over all images, for names with any evaluated."""
    found = zip(tally.names, tally.right.sum(0).tolist(), tally.evaluated.sum(0).tolist(), strict=True)
    return {name: (right, evaluated) for name, right, evaluated in found if evaluated}


def test_identity_reference():
    """Identity is evaluated against the reference's attributes."""
    example = case(("background", "beach"))
    tally = identity(*stacked((example, read(example, main="green", accent="none"))))
    assert counts(tally) == {
        **dict.fromkeys(("shape", "second", "texture", "accessory"), (1, 1)),
        **dict.fromkeys(("main", "accent"), (0, 1)),
    }
    assert one(accuracy, tally) == pytest.approx(4 / 6)
    assert one(all_right, tally) == 0


def test_prompt_recolored():
    """A recolored attribute counts for the prompt and not for the identity."""
    example = case(("main", "green"), ("second", "red"))
    readings = stacked((example, read(example, second="blue")))  # blue is the reference's; the prompt asks for red
    assert {"main", "second"} & set(counts(identity(*readings))) == set()
    assert one(all_right, identity(*readings)) == 1
    assert counts(prompt(*readings)) == {RECOLOURING: (1, 2)}
    assert one(accuracy, prompt(*readings)) == 0.5
    assert one(all_right, prompt(*readings)) == 0


def test_identity_without_accessory():
    """Without an accessory, its color is not evaluated, but its absence is."""
    example = case(("time", "day"), identity=BARE)
    tally = identity(*stacked((example, read(example, accessory="hat", accent="pink"))))
    assert "accent" not in counts(tally)
    assert counts(tally)["accessory"] == (0, 1)


def test_prompt_asked_attributes():
    """Only scene attributes that the prompt asks for are evaluated."""
    example = case(("background", "castle"), ("facing", "left"))
    tally = prompt(*stacked((example, read(example, facing="right", time="sunset", column="centre"))))
    assert counts(tally) == {"background": (1, 1), "facing": (0, 1)}


def test_accuracy_attribute_mean():
    """Accuracy is a mean over attributes, however often each is evaluated."""
    often, once = case(("time", "day")), case(("tilt", "left"))
    cases = [(often, read(often))] * 3 + [(once, read(once, tilt="right"))]
    assert one(accuracy, prompt(*stacked(*cases))) == 0.5
    assert one(all_right, prompt(*stacked(*cases))) == 0.75


def test_reasoning_subset():
    """Reasoning accuracy is prompt accuracy on reasoning prompts alone, and NaN if there are none."""
    plain, asked = case(("time", "day")), case(("facing", "right"), reasoning=True)
    tally = reasoning(*stacked((plain, read(plain, time="night")), (asked, read(asked))))
    assert counts(tally) == {"facing": (1, 1)}
    assert one(accuracy, tally) == one(all_right, tally) == 1
    nothing = reasoning(*stacked((plain, read(plain))))
    assert np.isnan([one(accuracy, nothing), one(all_right, nothing)]).all()


def test_pose_copy_free_attributes():
    """Pose copies are counted only for attributes that the prompt leaves free."""
    example = case(("facing", "left"))  # the reference's value, but no copy, since the prompt asks for it
    tally = pose_copy(*stacked((example, read(example, column="left", row="back"))))
    assert counts(tally) == {"column": (1, 1), "row": (1, 1), "size": (0, 1), "tilt": (0, 1)}
    assert one(accuracy, tally) == 0.5
    assert copy_chance(tally) == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 1 / 3) / 4)


def test_copy_chance():
    """The targets' copy rate is the chance rate, and all other accuracies of targets are 1."""
    source = ToyworldSource(Split.TEST, 2000)
    examples = [source.example(i) for i in range(len(source))]
    targets = np.stack([numbers(example.target.identity, example.target.scene) for example in examples])
    tally = pose_copy(examples, targets)
    assert copy_chance(tally) == pytest.approx(0.4)
    assert one(accuracy, tally) == pytest.approx(0.4, abs=0.02)
    for right in (identity, prompt, reasoning):
        assert one(all_right, right(examples, targets)) == 1


def test_accuracy_weights():
    """Weights are numbers of images."""
    good, bad = case(("time", "day")), case(("time", "day"))
    tally = prompt(*stacked((good, read(good)), (bad, read(bad, time="night"))))
    assert accuracy(tally, np.asarray([[3.0, 1.0], [0.0, 2.0]])).tolist() == [0.75, 0.0]


def test_truth_all_attributes():
    """The probe is evaluated on every attribute."""
    example = case(("time", "day"), identity=BARE)
    tally = truth(*stacked((example, read(example, accent="pink"))))
    assert tally.names == tuple(ATTRIBUTES)
    assert tally.evaluated.all()
    assert counts(tally)["accent"] == (0, 1)
    assert tally.right.sum() == len(ATTRIBUTES) - 1
