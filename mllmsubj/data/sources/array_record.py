"""The pack format: a dataset as a few large files with random access, suitable for training from a bucket.

    data-00000-of-00004.array_record …  the examples, `group_size:1`
    index.npz                           width, height, references, score:NAME, from which batches are planned
    pack.json                           version, source, examples, skipped, shards; written last

A record is a safetensors file: uint8 tensors `target`, `reference_0` …, `mask_0` … (missing where there is none), each
the bytes of an image file, and `example` in its metadata: prompt, subject, scores and origin as JSON. Nothing is
unpickled, and any safetensors reader opens a record.
"""

import json
import operator
from typing import Any, SupportsIndex

import numpy as np
import safetensors.numpy
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from mllmsubj.data.example import Example, Index, Unreadable
from mllmsubj.data.sources.indexing import check_index
from mllmsubj.errors import DataError

VERSION = 1
FINISHED, UNFINISHED, INDEX = "pack.json", "packing.json", "index.npz"
"""File names in a pack's folder; the second one exists only while the pack is unfinished."""


class PackSource:
    """Source of a finished pack's examples; safe in threads, and each shard is opened when it is first read."""

    def __init__(self, folder: epath.Path) -> None:
        """Opens a pack; raises UserError if it is unfinished, incomplete or damaged."""
        if not (folder / FINISHED).exists():
            raise DataError(f"{folder} has no {FINISHED}: it is no finished pack; run `mllmsubj data pack` on it again")
        if "://" in str(folder):  # ArrayRecord's reader supports local files only
            raise DataError(f"{folder} is a pack in a bucket; mount it (gcsfuse) and give the mounted folder")
        self.about = _about(folder / FINISHED)
        self._index = _read_index(folder / INDEX, sum(self.about["shards"].values()))
        for name in self.about["shards"]:
            if not (folder / name).exists():
                raise DataError(f"{folder} lacks {name}, which its {FINISHED} lists; copy it again or pack anew")
        # With the counts in the names, the reader need not open every shard to get them.
        paths = [f"{folder / name}[0:{count}]" for name, count in self.about["shards"].items()]
        self._records = ArrayRecordDataSource(paths)
        self._folder = folder

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._index.width)

    def __getitem__(self, number: SupportsIndex, /) -> Example:
        """Reads an example; raises Unreadable if it cannot be read."""
        number = check_index(operator.index(number), len(self))
        try:
            return read_record(self._records[number])
        except Exception as error:  # ArrayRecord raises several types for damaged or missing shards
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Unreadable(f"{self._folder}, record {number} cannot be read: {reason}") from error

    def index(self) -> Index:
        """Returns the index that is stored in the pack."""
        return self._index

    def __repr__(self) -> str:
        """Returns the name of the source (see `Source`)."""
        return f"pack of {len(self)} examples, {self.about['skipped']} skipped, from {self.about['source']}"


def write_record(example: Example) -> bytes:
    """Serializes an example whose images are bytes to one record."""
    files = {"target": example.target}
    files |= {f"reference_{i}": each for i, each in enumerate(example.references)}
    files |= {f"mask_{i}": each for i, each in enumerate(example.masks) if each is not None}
    about = dict(
        prompt=example.prompt,
        subject=example.subject,
        scores=dict(example.scores),
        origin=example.origin,
        references=len(example.references),
        masks=len(example.masks),
    )
    tensors = {name: np.frombuffer(each, np.uint8) for name, each in files.items()}
    return safetensors.numpy.save(tensors, {"example": json.dumps(about)})


def read_record(record: bytes) -> Example:
    """Reads an example from a record of `write_record`."""
    start = 8 + int.from_bytes(record[:8], "little")
    header = json.loads(record[8:start])
    about = json.loads(header.pop("__metadata__")["example"])
    files = {
        name: record[start + each["data_offsets"][0] : start + each["data_offsets"][1]] for name, each in header.items()
    }
    return Example(
        references=tuple(files[f"reference_{i}"] for i in range(about["references"])),
        prompt=about["prompt"],
        target=files["target"],
        subject=about["subject"],
        masks=tuple(files.get(f"mask_{i}") for i in range(about["masks"])),
        scores=about["scores"],
        origin=about["origin"],
    )


def index_arrays(index: Index) -> dict[str, np.ndarray]:
    """Returns the arrays of `index.npz` for an index."""
    scores = {f"score:{name}": values for name, values in index.scores.items()}
    return dict(width=index.width, height=index.height, references=index.references) | scores


def index_of_arrays(arrays: dict[str, np.ndarray]) -> Index:
    """Returns the index for arrays of `index_arrays`."""
    scores = {name.removeprefix("score:"): each for name, each in arrays.items() if name.startswith("score:")}
    return Index(arrays["width"], arrays["height"], arrays["references"], scores)


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file, without unpickling."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _about(path: epath.Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text())
        version = about["version"]
        complete = isinstance(about["source"], str) and about["skipped"] >= 0 and sum(about["shards"].values()) > 0
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged; copy it again or pack anew") from error
    if version != VERSION or not complete:
        raise DataError(f"{path} is of version {version!r}; this program reads version {VERSION}, pack anew")
    return about


def _read_index(path: epath.Path, count: int) -> Index:
    try:
        index = index_of_arrays(read_arrays(path))
        lengths = {len(each) for each in index_arrays(index).values()}
    except Exception as error:  # a damaged zip file raises many types
        raise DataError(f"{path} is damaged ({type(error).__name__}); copy it again or pack anew") from error
    if lengths != {count}:
        raise DataError(f"{path} is of {max(lengths)} examples, {FINISHED} of {count}; copy both again or pack anew")
    return index
