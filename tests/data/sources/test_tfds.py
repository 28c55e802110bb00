import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mllmsubj
from mllmsubj.data.sources import open_named
from mllmsubj.errors import UserError
from tests.data.sources.pictures import write_folder, write_manifest

BUILDER = Path(mllmsubj.__file__).parent / "data" / "tfds" / "subject_pairs"


def build(folder, data_dir, *flags):
    command = [sys.executable, "-m", "mllmsubj.data.tfds", BUILDER, f"--manual_dir={folder}", f"--data_dir={data_dir}"]
    env = os.environ | {"NO_GCE_CHECK": "true", "TFDS_DATA_DIR": str(data_dir)}
    return subprocess.run([*command, *flags], capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Builds a data set; returns the folder of its source files and the folder of built data sets."""
    folder, data_dir = tmp_path_factory.mktemp("manual"), tmp_path_factory.mktemp("tfds")
    lines = write_folder(folder)
    write_manifest(folder / "train.jsonl", lines)
    write_manifest(folder / "test.jsonl", lines[:2])
    done = build(folder, data_dir, "--file_format=array_record")
    assert done.returncode == 0, done.stderr
    return folder, data_dir


def opened(built, name="subject_pairs", split="train"):
    return open_named(f"tfds:{name}@{built[1]}", split, 1, 64, 0)


def test_tfds_examples(built):
    """A built data set holds the manifest's examples in another order."""
    source = opened(built)
    expected = {each.prompt: each for each in open_named(str(built[0] / "train.jsonl"), "train", 1, 64, 0)}
    assert len(source) == len(expected) == 6
    assert len(opened(built, split="test")) == 2
    for number, example in enumerate(source):
        original = expected.pop(example.prompt)
        assert example.references == original.references
        assert example.target == original.target
        assert example.masks == original.masks
        assert example.subject == original.subject
        assert example.scores == original.scores  # eighths: float32 holds them
        assert example.origin == f"subject_pairs, train, example {number}"
    assert expected == {}


def test_tfds_index(built):
    source = opened(built, "subject_pairs:1.0.0")
    index, prompts = source.index(), [example.prompt for example in source]
    by_prompt = {prompt: i for i, prompt in enumerate(prompts)}
    order = [by_prompt[f"number {i}, é"] for i in range(6)]
    assert index.width[order].tolist() == [48, 32, 48, 48, 48, 48]
    assert index.height[order].tolist() == [32, 48, 32, 32, 32, 32]
    assert index.references[order].tolist() == [1, 2, 1, 2, 1, 2]
    np.testing.assert_array_equal(index.scores["dino"][order], np.float32([0, 1 / 8, np.nan, 3 / 8, 4 / 8, 5 / 8]))
    assert repr(source) == "TFDS subject_pairs/1.0.0, split train, 6 examples"


def test_tfds_unknown_name_or_split(built, tmp_path):
    """The error names the data set or the split, in one line."""
    for name, split, says in (
        ("subject_pear", "train", "no TFDS data set 'subject_pear'"),
        ("subject_pairs", "validation", "no split 'validation'.*splits: .*train"),
        ("", "train", "names no data set"),
    ):
        with pytest.raises(UserError, match=says) as error:
            opened(built, name, split)
        assert "\n" not in str(error.value)


def changed(built, tmp_path, name, change):
    """Opens a copy of the data set in which one JSON file is changed."""
    version = shutil.copytree(built[1] / "subject_pairs", tmp_path / "subject_pairs") / "1.0.0"
    content = json.loads((version / name).read_text())
    change(content)
    (version / name).write_text(json.dumps(content))
    return open_named(f"tfds:subject_pairs@{tmp_path}", "train", 1, 64, 0)


def test_tfds_missing_features(built, tmp_path):
    def rename(content):
        features = content["featuresDict"]["features"]
        features["label"] = features.pop("target")

    with pytest.raises(UserError, match=r"has the features .*label.*; missing are target$"):
        changed(built, tmp_path, "features.json", rename)


def test_tfds_without_random_access(built, tmp_path):
    """Other file formats than ArrayRecord are an error."""
    with pytest.raises(UserError, match="--file_format=array_record"):
        changed(built, tmp_path, "dataset_info.json", lambda content: content.update(fileFormat="tfrecord"))


def test_tfds_build_damaged_image(mine, tmp_path):
    """The build fails with an error that names the image."""
    (mine / "pairs.jsonl").rename(mine / "train.jsonl")
    (mine / "target3.jpg").write_bytes((mine / "target3.jpg").read_bytes()[:-200])
    done = build(mine, tmp_path, "--file_format=array_record")
    assert done.returncode != 0
    assert "train.jsonl:4, target cannot be read as a picture" in done.stderr
