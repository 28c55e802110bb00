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


def test_toyworld_is_drawn_as_large_as_the_largest_side():
    assert repr(open_source(config(), seed=3)) == repr(ToyworldSource(Split.TRAIN, 9, size=80, seed=3))
    assert repr(open_source(config(), seed=3, split="test")) == repr(ToyworldSource(Split.TEST, 9, size=80, seed=3))


def test_files_are_told_apart_by_their_names(folder):
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
def test_other_names_are_refused(folder, name, says):
    with pytest.raises(UserError) as error:
        open_named(name.format(folder=folder), "train", 1, 64, 0)
    for word in says:
        assert word in str(error.value)


def test_toyworld_has_two_splits():
    with pytest.raises(UserError, match=r"split 'trian' of toyworld \(did you mean 'train'\?\)"):
        open_named("toyworld", "trian", 1, 64, 0)


def test_a_folder_of_other_array_records(tmp_path):
    (tmp_path / "a.array_record-00000-of-00001").write_bytes(b"")
    with pytest.raises(UserError, match=r"has no pack.json: it is no finished pack"):
        open_named(str(tmp_path), "train", 1, 64, 0)
