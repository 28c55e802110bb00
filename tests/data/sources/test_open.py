import pytest

from mllmsubj.config.data import DataConfig
from mllmsubj.data.example import Source
from mllmsubj.data.sources import open_named, open_source
from mllmsubj.errors import UserError
from mllmsubj.toyworld import Split, ToyworldSource


def config(**changes):
    settings = dict(source="toyworld", split="train", examples=9, sizes=((64, 64), (48, 80)), max_references=1)
    settings |= dict(prompt_tokens=32, swap=0.0, flip=0.0, crop=1.0, remove_background=0.0, min_scores=())
    return DataConfig(
        **(settings | dict(max_skipped=0.0, threads=1, prefetch=1, cache="", cached_features="latents") | changes)
    )


def test_open_source_toyworld_size():
    """The size of toyworld images is the largest side of all buckets."""
    assert repr(open_source(config(), seed=3)) == repr(ToyworldSource(Split.TRAIN, 9, size=80, seed=3))
    assert repr(open_source(config(), seed=3, split="test")) == repr(ToyworldSource(Split.TEST, 9, size=80, seed=3))


def test_open_source_manifest(folder):
    """A name that ends in .jsonl is a manifest."""
    source = open_source(config(source=str(folder / "pairs.jsonl")), seed=0)
    assert isinstance(source, Source)
    assert len(source) == 6


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("toywrld", ["'toywrld' is not there (did you mean 'toyworld'?)", "FILE.jsonl", "tfds:NAME"]),
        ("", ["source '' is not there"]),
        ("{folder}", ["no ArrayRecord and no parquet"]),
        ("{folder}/target0.jpg", ["target0.jpg' is a file of no known kind"]),
        ("{folder}/nowhere.jsonl", ["nowhere.jsonl' is not there"]),
    ],
)
def test_open_named_unknown(folder, name, says):
    with pytest.raises(UserError) as error:
        open_named(name.format(folder=folder), "train", 1, 64, 0)
    for word in says:
        assert word in str(error.value)


def test_open_named_toyworld_unknown_split():
    with pytest.raises(UserError, match=r"split 'trian' of toyworld \(did you mean 'train'\?\)"):
        open_named("toyworld", "trian", 1, 64, 0)


def test_open_named_array_records_without_pack(tmp_path):
    """A folder of ArrayRecord files that `data pack` did not write is an error."""
    (tmp_path / "a.array_record-00000-of-00001").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no pack.json: it is no finished pack"):
        open_named(str(tmp_path), "train", 1, 64, 0)
