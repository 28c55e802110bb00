import json
import logging
from dataclasses import fields

import numpy as np
import pytest
import skimage.data
from PIL import Image

from mllmsubj.data.batch import Batch
from mllmsubj.data.example import Example, Index, Unreadable
from mllmsubj.data.loader import make_loader
from mllmsubj.data.transforms import RowReader
from mllmsubj.errors import UserError
from tests.data.test_images import CONFIG as REFERENCE
from tests.data.test_plan import config
from tests.data.test_transforms import encoder, stored  # noqa: F401

CAT = Image.fromarray(skimage.data.chelsea())
SIZES = ((48, 48), (72, 48))
RANDOM = dict(swap=0.5, flip=0.5, crop=0.5)
BATCH = 4


class Pictures:
    """A source of different crops of a photograph as JPEG; the images of the `bad` ones cannot be read."""

    def __init__(self, length=19, bad=()):
        self.length, self.bad, self.read = length, set(bad), []

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        self.read.append(number)
        if number in self.bad and number % 2:
            raise Unreadable(f"folder/{number}.jpg is not there")
        reference = b"" if number in self.bad else stored(CAT.crop((0, 0, 90 + number, 60)), "JPEG")
        target = stored(CAT.crop((number, number, number + SIZES[number % 2][0], number + 48)), "JPEG")
        return Example((reference,), f"cat {number}", target, origin=f"folder/{number}.jpg")

    def __repr__(self):
        return f"Pictures({self.length})"

    def index(self):
        width = np.asarray([SIZES[number % 2][0] for number in range(self.length)], np.int32)
        return Index(width, np.full(self.length, 48, np.int32), np.ones(self.length, np.int32))


@pytest.fixture
def loader(encoder):  # noqa: F811
    made = []

    def make(source=None, rows=range(BATCH), seed=7, batch_size=BATCH, first_step=0, **changes):
        settings = config(**{"sizes": ((64, 64), (64, 96)), "max_references": 1, **changes})
        reader = RowReader(settings, REFERENCE, encoder, 32)
        source = Pictures() if source is None else source
        made.append(make_loader(source, reader, batch_size, np.asarray(rows, np.int64), seed, first_step))
        return made[-1]

    yield make
    for one in made:
        one.close()


def take(loader, steps):
    return [next(loader) for _ in range(steps)]


def assert_same(batches, others, rows=slice(None)):
    """Checks that `others` hold exactly the `rows` of `batches`, bit for bit."""
    for batch, other in zip(batches, others, strict=True):
        assert (batch.text, batch.images) == (other.text, other.images)
        for field in fields(Batch)[:-2]:
            np.testing.assert_array_equal(getattr(batch, field.name)[rows], getattr(other, field.name), field.name)


def test_loader_follows_plan(loader, encoder):  # noqa: F811
    """Batches hold the plan's examples, in its order and its buckets."""
    one = loader()
    for step, batch in enumerate(take(one, 10)):
        planned = one.plan.batch(step)
        np.testing.assert_array_equal(batch.example, planned.examples)
        assert batch.target.shape == (BATCH, planned.bucket.height, planned.bucket.width, 3)
        assert batch.tiles.shape == (BATCH, 1, 32, 32, 3)
        assert (batch.skipped == 0).all()
        for number, ids in zip(batch.example, batch.input_ids, strict=True):
            np.testing.assert_array_equal(ids, encoder(f"cat {number}", 1, 64).input_ids[0])


def test_loader_rows_of_hosts(loader):
    """A host that reads some rows of the batch gets what one host reads for them, also where hosts share a row."""
    whole = take(loader(**RANDOM), 8)
    for rows in ([0, 1], [2, 3], [3, 1], []):
        assert_same(whole, take(loader(rows=rows, **RANDOM), 8), rows)


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 1), (1, 4), (5, 1), (5, 3)])
def test_loader_threads_and_prefetch(loader, threads, prefetch):
    """Batches do not depend on the numbers of threads and of prefetched batches."""
    assert_same(take(loader(**RANDOM), 12), take(loader(threads=threads, prefetch=prefetch, **RANDOM), 12))


def test_loader_resume(loader):
    """Batches after a restored state or a first step are those of an uninterrupted run."""
    whole = take(loader(**RANDOM), 12)
    first = loader(rows=[0, 1], **RANDOM)
    take(first, 5)
    state = json.loads(json.dumps(first.state()))
    assert state["step"] == 5
    resumed = loader(**RANDOM)
    resumed.restore(state)
    assert_same(whole[5:], take(resumed, 7))
    assert_same(whole[5:], take(loader(first_step=5, **RANDOM), 7))


def test_loader_resume_reads(loader):
    """A resumed loader reads only examples of later steps."""
    source = Pictures(200)
    one = loader(source)
    one.restore({**one.state(), "step": 20})
    take(one, 5)
    one.close()
    planned = [int(number) for step in range(20, 25 + 4) for number in one.plan.batch(step).examples]
    assert set(source.read) <= set(planned)
    assert len(source.read) >= 5 * BATCH


def test_loader_restore_earlier_step(loader):
    """A loader can be restored to a step before its own."""
    one = loader(**RANDOM)
    start = one.state()
    first = take(one, 3)
    one.restore(start)
    assert one.step == 0
    assert_same(first, take(one, 3))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(seed=8), r"plan was 19 examples in batches of 4, seed 7 \(\w+\) and is .* seed 8"),
        (dict(source=Pictures(18)), r"source was Pictures\(19\) and is Pictures\(18\); plan was 19 examples"),
        (dict(flip=0.5), r"augmentation was swap 0, flip 0, .* and is swap 0, flip 0\.5"),
    ],
)
def test_loader_restore_changed_data(loader, changes, says):
    """The error names what changed; other numbers of threads and of prefetched batches are allowed."""
    state = json.loads(json.dumps(loader().state()))
    loader().restore(state)
    loader(threads=3, prefetch=3).restore(state)
    with pytest.raises(UserError, match=f"the data changed since step 3: {says}") as error:
        loader(**changes).restore({**state, "step": 3})
    assert "\n" not in str(error.value)


def test_loader_seeds(loader):
    """Different seeds give different orders."""
    one, other = (np.stack([batch.example for batch in take(loader(seed=seed), 5)]) for seed in (1, 2))
    assert (one != other).any()


def test_loader_unreadable_examples(loader, caplog, monkeypatch):
    """The plan's replacements are used and counted, and each unreadable example is logged once."""
    monkeypatch.setattr(logging.getLogger("mllmsubj"), "propagate", True)
    bad = {3, 4, 11}
    one = loader(Pictures(bad=bad))
    batches = take(one, 30)
    for step, batch in enumerate(batches):
        for row, planned in enumerate(one.plan.batch(step).examples):
            tried = [int(planned), *(one.plan.replacement(step, row, attempt) for attempt in range(5))]
            number = next(number for number in tried if number not in bad)
            assert batch.example[row] == number
            assert batch.skipped[row] == tried.index(number)
    assert sum(int(batch.skipped.sum()) for batch in batches) > 6
    lines = [record.getMessage() for record in caplog.records]
    assert sorted(line.split("folder/")[1].split(".jpg")[0] for line in lines) == ["11", "3", "4"]
    assert all(record.levelname == "WARNING" for record in caplog.records)
    assert_same(batches, take(loader(Pictures(bad=bad), rows=[2], threads=1), 30), [2])


def test_loader_all_unreadable(loader):
    """Too many unreadable examples in a row are an error."""
    with pytest.raises(UserError, match=r"20 examples in a row cannot be used; the last: folder/") as error:
        take(loader(Pictures(bad=range(19))), 1)
    assert "\n" not in str(error.value)


def test_loader_source_exception(loader):
    """Exceptions other than Unreadable reach the caller."""

    class Broken(Pictures):
        def __getitem__(self, number):
            raise KeyError("a mistake")

    with pytest.raises(KeyError, match="a mistake"):
        take(loader(Broken()), 1)


def test_loader_close(loader):
    """A closed loader reads no more examples and raises ValueError."""
    source = Pictures()
    one = loader(source)
    take(one, 1)
    one.close()
    count = len(source.read)
    assert count <= BATCH * 4
    with pytest.raises(ValueError, match="closed"):
        next(one)
    assert len(source.read) == count
