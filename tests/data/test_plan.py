from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from mllmsubj.config.data import DataConfig
from mllmsubj.data.example import Index
from mllmsubj.data.plan import BatchPlan, Bucket
from mllmsubj.errors import UserError

CONFIG = dict(
    source="",
    split="train",
    examples=1,
    sizes=((64, 64), (64, 96), (96, 64)),
    max_references=2,
    prompt_tokens=64,
    swap=0.0,
    flip=0.0,
    crop=1.0,
    remove_background=0.0,
    min_scores=(),
    max_skipped=0.0,
    threads=2,
    prefetch=2,
    cache="",
    cached_features="latents",
)


def config(**changes):
    return DataConfig(**{**CONFIG, **changes})


def index(counts, **scores):
    """Returns the shuffled index of `counts`, a dict of (width, height, references) -> number of examples."""
    rows = np.concatenate([np.tile(kind, (count, 1)) for kind, count in counts.items()]).astype(np.int32)
    rows = np.random.default_rng(0).permutation(rows)
    return Index(rows[:, 0], rows[:, 1], rows[:, 2], {name: np.asarray(s, np.float32) for name, s in scores.items()})


MIXED = index({(500, 500, 1): 37, (900, 600, 1): 11, (600, 900, 2): 3, (100, 101, 7): 1})


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
def test_plan_epochs(batch_size):
    """After n · B steps every example was used equally often, those of the smallest bucket too."""
    plan = BatchPlan(MIXED, config(), batch_size, seed=3)
    batches = [plan.batch(step) for step in range(3 * 52)]  # three times 52 · B rows: 3 · B epochs
    seen = Counter(number for batch in batches for number in batch.examples.tolist())
    assert seen == dict.fromkeys(range(52), 3 * batch_size)
    assert {batch.epoch for batch in batches} <= set(range(3 * batch_size))
    assert [batch.epoch for batch in batches] == sorted(batch.epoch for batch in batches)


def test_plan_without_replacement():
    """In each bucket an example is not repeated before all others were used."""
    plan = BatchPlan(MIXED, config(), 4, seed=0)
    streams = {bucket: [] for bucket in plan.buckets}
    for step in range(200):
        batch = plan.batch(step)
        streams[batch.bucket] += batch.examples.tolist()
    for stream in streams.values():
        size = len(set(stream))
        for start in range(0, len(stream) - size + 1, size):
            assert len(set(stream[start : start + size])) == size


def test_plan_buckets():
    """Examples are assigned to buckets by aspect ratio and number of references."""
    plan = BatchPlan(MIXED, config(), 4, seed=0)
    kinds = {Bucket(64, 64, 1), Bucket(64, 64, 2), Bucket(64, 96, 1), Bucket(96, 64, 2)}
    assert set(plan.buckets) == kinds
    want = {(500, 500): (64, 64), (900, 600): (64, 96), (600, 900): (96, 64), (100, 101): (64, 64)}
    found = set()
    for step in range(60):
        batch = plan.batch(step)
        assert batch.examples.dtype == np.int32
        assert batch.examples.shape == (4,)
        for number in batch.examples:
            height, width = want[MIXED.width[number], MIXED.height[number]]
            assert batch.bucket == Bucket(height, width, min(2, int(MIXED.references[number])))
        found.add(batch.bucket)
    assert found == kinds


def test_plan_batch_random_access():
    """A batch depends on its step alone and not on the steps that were read before."""
    steps = np.random.default_rng(0).permutation(300)
    plan, other = BatchPlan(MIXED, config(), 4, seed=0), BatchPlan(MIXED, config(), 4, seed=0)
    straight = [plan.batch(step) for step in range(300)]
    for step in steps.tolist():
        batch = other.batch(step)
        assert (batch.step, batch.epoch, batch.bucket) == (step, straight[step].epoch, straight[step].bucket)
        np.testing.assert_array_equal(batch.examples, straight[step].examples)


def test_plan_epoch_and_seed_orders():
    """The order differs from epoch to epoch and from seed to seed."""
    plan, other = (BatchPlan(index({(64, 64, 1): 64}), config(), 64, seed) for seed in (0, 1))
    orders = [plan.batch(0), plan.batch(1), other.batch(0), other.batch(1)]
    assert len({tuple(batch.examples) for batch in orders}) == 4


def test_plan_buckets_shuffled():
    """The buckets of consecutive steps alternate at random."""
    plan = BatchPlan(index({(64, 64, 1): 400, (96, 64, 1): 400}), config(), 4, seed=0)
    buckets = [plan.batch(step).bucket for step in range(200)]
    changes = sum(a != b for a, b in pairwise(buckets))
    assert 70 < changes < 130


def test_plan_batch_large_step():
    """A batch of a very large step is computed without those before it; negative steps are an IndexError."""
    plan = BatchPlan(MIXED, config(), 4, seed=0)
    batch = plan.batch(10**12 + 1)
    assert batch.epoch == pytest.approx(10**12 * 4 / 52, rel=1e-6)
    with pytest.raises(IndexError):
        plan.batch(-1)


def test_plan_million_examples():
    many = Index(np.full(10**6, 64, np.int32), np.full(10**6, 64, np.int32), np.ones(10**6, np.int32))
    plan = BatchPlan(many, config(), 8, seed=0)
    assert len({*plan.batch(124_999).examples, *plan.batch(125_000).examples, *plan.batch(3).examples}) >= 22


def test_plan_fingerprint():
    """Fingerprints differ with the batch size, the seed, the sizes and the filter."""
    same = [BatchPlan(MIXED, config(), 4, 0).fingerprint() for _ in range(2)]
    scored = Index(MIXED.width, MIXED.height, MIXED.references, {"dino": np.linspace(0, 1, 52, dtype=np.float32)})
    others = [
        BatchPlan(MIXED, config(), 5, 0),
        BatchPlan(MIXED, config(), 4, 1),
        BatchPlan(MIXED, config(sizes=((64, 64),)), 4, 0),
        BatchPlan(scored, config(min_scores=(("dino", 0.1),)), 4, 0),
    ]
    assert same[0] == same[1]
    assert len({same[0], *(plan.fingerprint() for plan in others)}) == 5


def test_plan_replacement():
    """Replacements belong to the bucket of the batch and are reproducible."""
    plan = BatchPlan(MIXED, config(), 4, seed=0)
    for step in range(30):
        bucket = plan.batch(step).bucket
        stand_ins = [plan.replacement(step, 2, attempt) for attempt in range(8)]
        assert stand_ins == [BatchPlan(MIXED, config(), 4, seed=0).replacement(step, 2, a) for a in range(8)]
        heights = {Bucket(64, 96, 1): 600, Bucket(96, 64, 2): 900, Bucket(64, 64, 1): 500, Bucket(64, 64, 2): 101}
        assert {int(MIXED.height[number]) for number in stand_ins} == {heights[bucket]}


def test_plan_generator():
    """Each row of each step has its own random numbers, which do not depend on the batch size."""
    plan = BatchPlan(MIXED, config(), 4, seed=0)
    drawn = {plan.generator(step, row).random() for step in range(5) for row in range(5)}
    assert len(drawn) == 25
    assert plan.generator(3, 1).random() == BatchPlan(MIXED, config(), 8, seed=0).generator(3, 1).random()


def test_plan_min_scores():
    """Unreadable examples and those with a low or missing score are not used."""
    width = np.asarray([64, 0, 64, 64, 64, 64], np.int32)
    scores = {"dino": [0.9, 0.9, 0.5, np.nan, 0.7, 0.8], "aesthetic": [6, 6, 6, 6, 6, np.nan]}
    what = Index(width, np.full(6, 64, np.int32), np.ones(6, np.int32), {k: np.float32(v) for k, v in scores.items()})

    def used(*least):
        plan = BatchPlan(what, config(min_scores=least), 2, seed=0)
        found = {int(number) for step in range(12) for number in plan.batch(step).examples}
        assert len(found) == plan.examples
        return found

    assert used() == {0, 2, 3, 4, 5}
    assert used(("dino", 0.7)) == {0, 4, 5}
    assert used(("dino", 0.6), ("aesthetic", 5.0)) == {0, 4}


@pytest.mark.parametrize(
    ("scores", "least", "says"),
    [
        ({"dino": [0.5]}, (("dino", 0.9),), r"of 1 in the source, data\.min_scores \(dino >= 0\.9\) leaves none"),
        ({"dino": [0.5]}, (("dion", 0.1),), r"'dion'.* there are dino \(did you mean 'dino'\?\)"),
        ({"dino": [0.5], "x": [np.nan]}, (("x", 0.1),), "'x', a score that no example has; there are dino"),
        ({}, (("dino", 0.1),), "there are none at all"),
    ],
)
def test_plan_min_scores_invalid(scores, least, says):
    """Filters that no example passes and names of unknown scores are errors."""
    with pytest.raises(UserError, match=says):
        BatchPlan(index({(64, 64, 1): 1}, **scores), config(min_scores=least), 4, seed=0)


def test_plan_no_examples():
    """A source without readable examples and a batch size of zero are errors."""
    with pytest.raises(UserError, match="of 5 in the source, none can be read"):
        BatchPlan(index({(0, 0, 1): 5}), config(), 4, seed=0)
    with pytest.raises(UserError, match="batch_size is 0"):
        BatchPlan(MIXED, config(), 0, seed=0)
