"""Builds a TensorFlow Dataset from a manifest and its image files, which are stored unchanged.

tfds build mllmsubj/data/tfds/subject_pairs --manual_dir=FOLDER --file_format=array_record --data_dir=DIR

FOLDER contains `train.jsonl`, and optionally `test.jsonl` (see data/sources/manifest.py). Examples whose images
cannot be read stop the build; `mllmsubj data check --source=FOLDER/train.jsonl` finds all of them first.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from mllmsubj.data.check import check_example
from mllmsubj.data.sources.manifest import open_manifest
from mllmsubj.errors import DataError


class Builder(tfds.core.GeneratorBasedBuilder):
    """Reference images of a subject, a prompt, and the target image of the subject that matches the prompt."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012 (TFDS reads it from the class)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "--manual_dir is a folder with train.jsonl, test.jsonl if there is one, and pictures."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        scores = dict(name=tfds.features.Text(), value=np.float32)
        features = dict(
            references=tfds.features.Sequence(tfds.features.Image()),
            target=tfds.features.Image(),
            prompt=tfds.features.Text(),
            subject=tfds.features.Text(),
            masks=tfds.features.Sequence(tfds.features.Text()),  # image files; empty if a reference has none
            scores=tfds.features.Sequence(scores),
            width=np.int32,
            height=np.int32,
        )
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        paths = {split: epath.Path(dl_manager.manual_dir) / f"{split}.jsonl" for split in ("train", "test")}
        if not paths["train"].exists():
            raise DataError(f"{paths['train']} is not there; --manual_dir names the folder that holds it")
        return {split: self._generate_examples(path) for split, path in paths.items() if path.exists()}

    def _generate_examples(self, path: epath.Path) -> Iterator[tuple[int, dict[str, Any]]]:
        source = open_manifest(path)
        for number in range(len(source)):
            example = source[number]
            width, height = check_example(example)
            yield (
                number,
                dict(
                    references=[io.BytesIO(bytes(each)) for each in example.references],
                    target=io.BytesIO(bytes(example.target)),
                    prompt=example.prompt,
                    subject=example.subject,
                    masks=[mask or b"" for mask in example.masks],
                    scores=[dict(name=name, value=score) for name, score in example.scores.items()],
                    width=width,
                    height=height,
                ),
            )
