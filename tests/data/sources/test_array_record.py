import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from mllmsubj.data.example import Example, Unreadable
from mllmsubj.data.pack import PackCallbacks, pack
from mllmsubj.data.sources import open_named
from mllmsubj.data.sources.array_record import read_record, write_record
from mllmsubj.errors import UserError
from mllmsubj.toyworld import Split, ToyworldSource


def opened(path):
    return open_named(str(path), "train", 1, 64, 0)


@pytest.fixture
def skipped():
    return []


@pytest.fixture
def progress(skipped):
    return PackCallbacks(lambda _: None, skipped.append)


def test_record_round_trip():
    """A record is a safetensors file of the example's images."""
    example = Example((b"one", b"two"), "é", b"target", "dog", (None, b"mask"), {"dino": 0.5}, "pairs.jsonl:3")
    assert read_record(write_record(example)) == example
    tensors = safetensors.numpy.load(write_record(example))
    assert {name: bytes(tensor) for name, tensor in tensors.items()} == dict(
        reference_0=b"one", reference_1=b"two", mask_1=b"mask", target=b"target"
    )


@pytest.mark.parametrize("shards", [1, 4])
def test_pack_examples(folder, tmp_path, progress, shards):
    """A pack has the examples and the index of its source."""
    source = opened(folder / "pairs.jsonl")
    packed = pack(source, tmp_path / "pack", shards, 2, progress)
    assert list(packed) == list(opened(tmp_path / "pack")) == list(source)
    files = [f"data-{i:05d}-of-{shards:05d}.array_record" for i in range(shards)]
    assert sorted(path.name for path in (tmp_path / "pack").iterdir()) == [*files, "index.npz", "pack.json"]
    index, expected = packed.index(), source.index()
    for name in ("width", "height", "references"):
        np.testing.assert_array_equal(getattr(index, name), getattr(expected, name))
    np.testing.assert_array_equal(index.scores["dino"], expected.scores["dino"])
    assert repr(packed) == f"pack of 6 examples, 0 skipped, from {source!r}"


def test_pack_arrays_as_png(tmp_path, progress):
    """Images and masks that are arrays are stored losslessly."""
    source = ToyworldSource(Split.TEST, 5, size=64)
    mask = np.zeros((64, 64), np.uint8)
    mask[:9] = 255

    class Masked(ToyworldSource):
        def __getitem__(self, number, /):
            return replace(source[number], masks=(mask,))

    packed = pack(Masked(Split.TEST, 5), tmp_path / "pack", None, 1, progress)
    for example, drawn in zip(packed, source, strict=True):
        assert example.target.startswith(b"\x89PNG")
        assert (np.asarray(opened_picture(example.target)) == drawn.target).all()
        assert (np.asarray(opened_picture(example.references[0])) == drawn.references[0]).all()
        assert (np.asarray(opened_picture(example.masks[0])) == mask).all()


def opened_picture(file):
    return Image.open(io.BytesIO(file))


def test_pack_unreadable_examples(mine, tmp_path, progress, skipped):
    """Unreadable examples are left out, reported and counted."""
    (mine / "target1.jpg").unlink()
    (mine / "reference2_0.jpg").write_bytes((mine / "reference2_0.jpg").read_bytes()[:-200])
    (mine / "mask5.png").write_bytes(b"")
    source = opened(mine / "pairs.jsonl")
    packed = pack(source, tmp_path / "pack", 3, 2, progress)
    assert [example.origin for example in packed] == ["pairs.jsonl:1", "pairs.jsonl:4", "pairs.jsonl:5"]
    assert packed.index().scores["dino"].tolist() == [0, 3 / 8, 4 / 8]
    assert [why.split(" ")[0] for why in skipped] == ["pairs.jsonl:2,", "pairs.jsonl:3,", "pairs.jsonl:6,"]
    about = json.loads((tmp_path / "pack" / "pack.json").read_text())
    assert (about["examples"], about["skipped"], len(about["shards"])) == (3, 3, 2 + 1)


def test_pack_empty_shard(mine, tmp_path, progress):
    """A shard without readable examples is not listed; a pack without any is an error."""
    for i in range(2):
        (mine / f"target{i}.jpg").unlink()
    packed = pack(opened(mine / "pairs.jsonl"), tmp_path / "pack", 3, 2, progress)
    assert len(packed.about["shards"]) == 2
    assert [example.prompt for example in packed] == [f"number {i}, é" for i in range(2, 6)]
    for path in mine.glob("target*"):
        path.unlink()
    with pytest.raises(UserError, match="none of the 6 examples"):
        pack(opened(mine / "pairs.jsonl"), tmp_path / "none", 3, 2, progress)


def test_pack_read_by_threads(tmp_path, progress):
    source = ToyworldSource(Split.TRAIN, 60, size=64)
    packed = pack(source, tmp_path / "pack", 3, 2, progress)
    numbers = np.random.default_rng(0).integers(0, 60, 600).tolist()
    with ThreadPoolExecutor(8) as pool:
        prompts = list(pool.map(lambda number: packed[number].prompt, numbers))
    assert prompts == [source.example(number).prompt.text for number in numbers]
    with pytest.raises(IndexError):
        packed[60]


class Stopped(Exception):
    """Interrupts `pack`."""


def test_pack_resume(folder, tmp_path, progress):
    """After an interruption, finished shards are kept and the others are written."""
    source = opened(folder / "pairs.jsonl")
    done = []

    def plug(count):
        done.append(count)
        if sum(done) > 4:
            raise Stopped

    with pytest.raises(Stopped):
        pack(source, tmp_path / "pack", 3, 1, PackCallbacks(plug, print))
    left = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pack").iterdir()}
    whole = [f"data-0000{i}-of-00003.array_record" for i in range(2)]
    assert sorted(left) == sorted([*whole, *(name.replace("array_record", "npz") for name in whole), "packing.json"])
    with pytest.raises(UserError, match="no finished pack; run `mllmsubj data pack`"):
        opened(tmp_path / "pack")
    packed = pack(source, tmp_path / "pack", None, 2, progress)
    assert list(packed) == list(source)
    assert all((tmp_path / "pack" / name).stat().st_mtime_ns == left[name] for name in whole)


def test_pack_other_settings(folder, mine, tmp_path, progress):
    """Another source or number of shards than those in the folder is an error, also in a finished pack."""
    source = opened(folder / "pairs.jsonl")
    other = ToyworldSource(Split.TRAIN, 6)

    def stop(count):
        raise Stopped

    with pytest.raises(Stopped):
        pack(source, tmp_path / "pack", 2, 1, PackCallbacks(stop, print))
    with pytest.raises(UserError, match=r"is a pack of manifest pairs.jsonl.*not of ToyworldSource"):
        pack(other, tmp_path / "pack", 2, 1, progress)
    with pytest.raises(UserError, match="--shards=2, not 3"):
        pack(source, tmp_path / "pack", 3, 1, progress)
    pack(source, tmp_path / "pack", 2, 1, progress)
    assert list(pack(source, tmp_path / "pack", None, 1, progress)) == list(source)
    with pytest.raises(UserError, match=r"is a pack of manifest pairs.jsonl.*not of ToyworldSource"):
        pack(other, tmp_path / "pack", None, 1, progress)
    with pytest.raises(UserError, match="is not empty and no pack"):
        pack(source, mine, None, 1, progress)
    with pytest.raises(UserError, match="7 shards for 6 examples"):
        pack(source, tmp_path / "many", 7, 1, progress)
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "pack.json").unlink(), "no finished pack"),
        (lambda folder: (folder / "pack.json").write_text("{"), r"pack.json is damaged"),
        (lambda folder: (folder / "pack.json").write_text('{"version": 1}'), r"pack.json is damaged"),
        (lambda folder: change(folder, version=2), "is of version 2; this program reads version 1"),
        (lambda folder: (folder / "index.npz").write_bytes(b"PK"), "index.npz is damaged"),
        (lambda folder: change(folder, shards={"data-00000-of-00002.array_record": 3}), "index.npz is of 6 examples"),
        (lambda folder: (folder / "data-00001-of-00002.array_record").unlink(), "lacks data-00001-of-00002"),
    ],
)
def test_pack_damaged(folder, tmp_path, progress, damage, says):
    pack(opened(folder / "pairs.jsonl"), tmp_path / "pack", 2, 2, progress)
    damage(tmp_path / "pack")
    with pytest.raises(UserError, match=says) as error:
        opened(tmp_path / "pack")
    assert str(tmp_path / "pack") in str(error.value)


def change(folder, **changes):
    about = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps(about | changes))


def test_pack_damaged_record(folder, tmp_path, progress):
    """A damaged record raises Unreadable; the others can be read."""
    pack(opened(folder / "pairs.jsonl"), tmp_path / "pack", 1, 2, progress)
    shard = tmp_path / "pack" / "data-00000-of-00001.array_record"
    content = bytearray(shard.read_bytes())
    where = content.index((folder / "target0.jpg").read_bytes()[:60])
    content[where + 20] ^= 255
    shard.write_bytes(content)
    packed = opened(tmp_path / "pack")
    with pytest.raises(Unreadable, match="record 0 cannot be read"):
        packed[0]
    assert packed[5].prompt == "number 5, é"
