import subprocess
import sys
import zlib

import numpy as np
import pytest

from mllmsubj.toyworld import HeldOut, Split, ToyworldSource, example
from mllmsubj.toyworld.dataset.examples import held_out
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.dataset.latents import EncodedExamples
from mllmsubj.toyworld.world.identity import Color, Shape, combination_is_held_out, identity_is_held_out
from mllmsubj.toyworld.world.scene import CANONICAL_POSE, POSE_ATTRIBUTES, SCENE_ATTRIBUTES


def everyone(examples):
    return {picture.identity for e in examples for picture in (e.reference, e.target)}


def test_example_deterministic():
    """An example depends only on its split, its number and the seed."""
    numbers = [7, 0, 123456, 3]
    forward = [example(Split.TRAIN, i) for i in numbers]
    assert forward == [example(Split.TRAIN, i) for i in reversed(numbers)][::-1]
    assert len(set(forward)) == len(numbers)
    assert example(Split.TRAIN, 7, seed=1) != forward[0]
    assert example(Split.TEST, 7) != forward[0]


DIGEST = """
import sys, zlib
from mllmsubj.toyworld import Split, ToyworldSource
samples = [ToyworldSource(split, 40, seed=2)[i] for split in Split for i in (0, 31)]
print([zlib.crc32(s.references[0].tobytes() + s.prompt.encode() + s.target.tobytes()) for s in samples])
print("jax" in sys.modules, "mllmsubj.models" in sys.modules)
"""


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_source_across_processes(hash_seed):
    """Samples are identical in every process, and toyworld imports neither JAX nor the models."""
    env = {"PYTHONHASHSEED": hash_seed, "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, env=env, check=True)
    samples = [ToyworldSource(split, 40, seed=2)[i] for split in Split for i in (0, 31)]
    digests = [zlib.crc32(s.references[0].tobytes() + s.prompt.encode() + s.target.tobytes()) for s in samples]
    assert done.stdout.splitlines() == [str(digests), "False False"]


def test_splits_disjoint(drawn):
    """The training and the test split share no identity and no prompt."""
    train, test = drawn[Split.TRAIN], drawn[Split.TEST]
    assert everyone(train) & everyone(test) == set()
    assert {e.prompt.text for e in train} & {e.prompt.text for e in test} == set()


def test_train_split_excludes_held_out(drawn):
    """No training image shows a held-out identity or combination."""
    for identity in everyone(drawn[Split.TRAIN]):
        assert not identity_is_held_out(identity)
        assert not combination_is_held_out(identity)


def test_example_held_out(drawn):
    """Test examples alternate between held-out identities and held-out combinations."""
    for i, e in enumerate(drawn[Split.TEST]):
        assert e.held_out is held_out(e.reference.identity) is (HeldOut.COMBINATION if i % 2 else HeldOut.IDENTITY)
        assert held_out(e.target.identity) is not HeldOut.NOTHING
        assert combination_is_held_out(e.reference.identity) == bool(i % 2)
    assert all(e.held_out is HeldOut.NOTHING for e in drawn[Split.TRAIN])


def test_held_out_combinations(drawn):
    """Training contains every shape and color; the test split has one held-out combination per shape."""
    trained = {(i.shape, i.main) for i in everyone(drawn[Split.TRAIN])}
    assert {shape for shape, _ in trained} == set(Shape)
    assert {main for _, main in trained} == set(Color)
    combinations = [(e.reference.identity.shape, e.reference.identity.main) for e in drawn[Split.TEST][1::2]]
    assert len(set(combinations)) == len(Shape) == len({shape for shape, _ in combinations})
    assert set(combinations) & trained == set()


def test_identity_is_held_out_share(drawn):
    """About a tenth of all identities are held out."""
    flags = [identity_is_held_out(e.reference.identity) for e in drawn[Split.TEST][1::2]]  # not selected by identity
    assert 0.06 < np.mean(flags) < 0.14


@pytest.mark.parametrize("split", Split)
def test_example_target_follows_prompt(drawn, split):
    """The target has the attributes that the prompt asks for, and the reference's identity otherwise."""
    for e in drawn[split]:
        asked = dict(e.prompt.asks)
        scene = e.target.scene.attributes()
        assert {name: scene[name] for name in asked if name in scene} == {n: v for n, v in asked.items() if n in scene}
        for name in ("shape", "main", "second", "texture", "accessory", "accent"):
            expected = asked.get(name, getattr(e.reference.identity, name))
            assert getattr(e.target.identity, name) == expected


@pytest.mark.parametrize("split", Split)
def test_example_free_attributes(drawn, split):
    """Attributes that the prompt leaves free are independent of the reference's.

    They agree as often as two independent draws do, within four standard deviations; all but the pose take every value.
    """
    examples = [e for e in drawn[split] if e.prompt.kind in ("scene", "recolour", "recolour in scene")]
    for name, kinds in SCENE_ATTRIBUTES.items():
        pairs = [
            (e.reference.scene.attributes()[name], e.target.scene.attributes()[name])
            for e in examples
            if name in e.prompt.free
        ]
        shares = (
            [0.5] + [0.5 / (len(kinds) - 1)] * (len(kinds) - 1) if name == "thing" else [1 / len(kinds)] * len(kinds)
        )
        of_references, chance = shares, sum(share**2 for share in shares)
        if name in POSE_ATTRIBUTES:
            shares = [float(value is getattr(CANONICAL_POSE, name)) for value in kinds]
        deviation = np.sqrt(chance * (1 - chance) / len(pairs))
        assert len(pairs) > 300
        assert abs(np.mean([a == b for a, b in pairs]) - chance) < 4 * deviation, name
        for side, expected in enumerate((of_references, shares)):
            for value, share in zip(kinds, expected, strict=True):
                found = np.mean([pair[side] is value for pair in pairs])
                assert abs(found - share) <= 4.5 * np.sqrt(share * (1 - share) / len(pairs)), (name, value)


def test_example_pose_copy_rate(drawn):
    """A free target pose is the canonical one of 108, which a reference has about once in 108."""
    free = [e for e in drawn[Split.TRAIN] if set(POSE_ATTRIBUTES) <= set(e.prompt.free)]
    same = np.mean([e.reference.scene.pose == e.target.scene.pose for e in free])
    assert len(free) > 400
    assert same < 0.04


def test_picture_source_pose_randomness():
    """The first view has the canonical pose unless `pose_randomness` randomizes it; other views have random poses."""
    source = PictureSource(Split.TRAIN, 2000, 64, views=2, pose_randomness=0.25)
    poses = [source[i].scene.pose for i in range(len(source))]
    for name in POSE_ATTRIBUTES:
        kinds = len(SCENE_ATTRIBUTES[name])
        for first, chance in ((0, 0.75 + 0.25 / kinds), (1, 1 / kinds)):
            found = np.mean([getattr(pose, name) is getattr(CANONICAL_POSE, name) for pose in poses[first::2]])
            assert abs(found - chance) < 4 * np.sqrt(chance * (1 - chance) / 1000), (name, first)
    assert PictureSource(Split.TRAIN, 9, 64)[3] == PictureSource(Split.TRAIN, 9, 64, views=3, pose_randomness=1.0)[3]
    assert "unusual=0.25" in repr(source)  # the cache of latents is named after it


def test_source_getitem():
    source = ToyworldSource(Split.TEST, 10, size=96, seed=4)
    drawn, truth = source[9], source.example(9)
    assert len(source) == len(list(source)) == 10
    assert len(drawn.references) == 1
    assert (drawn.references[0] == truth.reference.render(96)).all()
    assert (drawn.target == truth.target.render(96)).all()
    assert (drawn.prompt, drawn.subject) == (truth.prompt.text, truth.reference.identity.shape)
    assert drawn.origin == "toyworld test 9"
    assert (source[np.int64(9)].target == drawn.target).all()
    for index in (-1, 10):
        with pytest.raises(IndexError, match="outside of the 10 examples"):
            source[index]
    assert repr(source) == "ToyworldSource(test, 10, size=96, seed=4)"


def test_source_index():
    """All rows have the same size and one reference."""
    index = ToyworldSource(Split.TRAIN, 7, size=80).index()
    assert (index.width.tolist(), index.height.tolist()) == ([80] * 7, [80] * 7)
    assert (index.references.tolist(), index.scores) == ([1] * 7, {})


def test_encoded_examples_relations():
    """Relational examples are repeated `relations` times."""
    examples = ToyworldSource(Split.TRAIN, 40, size=80)
    latent_stats = np.zeros((40, 2, 4, 4), np.float16) + np.arange(40)[:, None, None, None]
    source = EncodedExamples(examples, "", latent_stats, relations=3)
    rows = [source[i] for i in range(len(source.index().width))]
    assert source.index().width.tolist() == [80] * len(rows)
    numbers = [int(each[0, 0, 0]) for _, each in rows]
    changing = {i for i in range(40) if examples.example(i).prompt.is_relational}
    assert changing
    assert numbers == [i for i in range(40) for _ in range(3 if i in changing else 1)]
    assert all(drawn == examples.example(i) for (drawn, _), i in zip(rows, numbers, strict=True))
    for row in (-1, len(rows)):
        with pytest.raises(IndexError, match=f"row {row} is outside of the {len(rows)} rows"):
            source[row]
