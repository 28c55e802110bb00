"""Source of TensorFlow Datasets in ArrayRecord files, such as those built by `data/tfds/subject_pairs`."""

import functools
import operator
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, SupportsIndex

import numpy as np

from mllmsubj.data.example import Example, Index, Pixels, Unreadable
from mllmsubj.data.pixels import size_of
from mllmsubj.data.sources.indexing import check_index, make_index, read_sizes
from mllmsubj.errors import DataError

NAMES: Mapping[str, tuple[str, ...]] = dict(
    references=("references", "reference"),
    target=("target",),
    prompt=("prompt", "caption"),
    subject=("subject",),
    masks=("masks", "mask"),
    scores=("scores",),
    width=("width",),
    height=("height",),
)
"""Field of an example -> features that may contain it; the first three are required."""


class TfdsSource:
    """Source of one split; safe in threads."""

    def __init__(self, name: str, split: str, data_dir: str | None = None) -> None:
        """Opens a built data set without downloads; `name` is "NAME", "NAME/CONFIG", or either with ":VERSION"."""
        import tensorflow_datasets as tfds  # imported late, since only this source requires it

        builder = _builder(tfds, name, data_dir)
        found = {part: next((n for n in names if n in builder.info.features), None) for part, names in NAMES.items()}
        self._of = {part: feature for part, feature in found.items() if feature is not None}
        if missing := [part for part in ("references", "target", "prompt") if part not in self._of]:
            raise DataError(
                f"TFDS data set {name!r} has the features {', '.join(builder.info.features)}; "
                f"missing are {', '.join(' or '.join(NAMES[part]) for part in missing)}"
            )
        pictures = [self._of[part] for part in ("references", "target", "masks") if part in self._of]
        features = builder.info.features
        keep = {feature: _keep_file(tfds) for feature in pictures if _holds_image(tfds, features[feature])}
        try:
            self._records = builder.as_data_source(split=split, decoders=keep)
        except (ValueError, KeyError) as error:
            splits = ", ".join(builder.info.splits)
            reason = " ".join(str(error).split())
            raise DataError(
                f"TFDS data set {name!r} has no split {split!r} ({reason[:120]}); splits: {splits}"
            ) from error
        except NotImplementedError as error:
            raise DataError(
                f"TFDS data set {name!r} has no random access; build it with --file_format=array_record"
            ) from error
        self._name = f"TFDS {builder.info.full_name}, split {split}, {len(self._records)} examples"
        self._short = f"{name}, {split}"

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self._records)

    def __getitem__(self, number: SupportsIndex, /) -> Example:
        """Reads an example; raises Unreadable if it cannot be read."""
        number = check_index(operator.index(number), len(self))
        origin = f"{self._short}, example {number}"
        row = self._row(number, origin)
        masks = tuple(map(_mask, _several(row.get("masks"))))
        return Example(
            references=tuple(map(_picture, _several(row["references"]))),
            prompt=_text(row["prompt"]),
            target=_picture(row["target"]),
            subject=_text(row.get("subject", b"")),
            masks=masks,
            scores=_scores(row.get("scores")),
            origin=origin,
        )

    def index(self) -> Index:
        """Returns the index, with sizes from the features or else from image headers; every record is read."""
        known: list[tuple[int, Mapping[str, float]]] = [(1, {})] * len(self)

        def size(number: int) -> tuple[int, int]:
            row = self._row(number, "")
            known[number] = len(_several(row["references"])), _scores(row.get("scores"))
            if row.get("width", 0) > 0 and row.get("height", 0) > 0:
                return int(row["width"]), int(row["height"])
            return size_of(_picture(row["target"]), "")

        sizes = read_sizes(size, len(self))
        return make_index(sizes, [count for count, _ in known], [scores for _, scores in known])

    def __repr__(self) -> str:
        """Returns the name of the source (see `Source`)."""
        return self._name

    def _row(self, number: int, origin: str) -> dict[str, Any]:
        try:
            row = self._records[number]
        except Exception as error:  # TFDS, protobuf and ArrayRecord raise different types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise Unreadable(f"{origin} cannot be read: {reason}") from error
        return {part: row[feature] for part, feature in self._of.items()}


def open_tfds(text: str, split: str) -> TfdsSource:
    """Opens `NAME[:CONFIG][@DATA_DIR]`, or TFDS's own forms `NAME:VERSION` and `NAME/CONFIG:VERSION`."""
    name, _, data_dir = text.partition("@")
    if not name:
        raise DataError(f"source 'tfds:{text}' names no data set; write tfds:NAME[:CONFIG][@DATA_DIR]")
    name, colon, rest = name.partition(":")
    version = re.fullmatch(r"[\d.*]+", rest) is not None
    return TfdsSource(name + (colon if version or not rest else "/") + rest, split, data_dir or None)


def _builder(tfds: ModuleType, name: str, data_dir: str | None) -> Any:
    where = f"in {data_dir}" if data_dir else "in TFDS's own folder"
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except Exception as error:  # DatasetNotFoundError, and any type from the builder
        reason = " ".join(str(error).split()).partition(" Available datasets:")[0][:200]
        raise DataError(
            f"no TFDS data set {name!r} {where}: {reason}; give its folder as tfds:NAME@DATA_DIR"
        ) from error
    if not builder.is_prepared():
        raise DataError(f"TFDS data set {name!r} is not built {where}; run tfds build --file_format=array_record")
    return builder


@functools.cache
def _keep_file(tfds: ModuleType) -> Any:
    """Returns a decoder that leaves images encoded; TFDS's own does not support sequences of images."""

    class KeepFile(tfds.decode.SkipDecoding):  # type: ignore[name-defined]
        def decode_batch_example_np(self, files: Any) -> Any:
            return files

    return KeepFile()


def _holds_image(tfds: ModuleType, feature: Any) -> bool:
    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return isinstance(inner, tfds.features.Image)


def _several(value: Any) -> list[Any]:
    """Returns the items of a sequence, or a list of one image (a file or an array)."""
    if value is None:
        return []
    single = isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim < 4)
    return [value] if single else list(value)


def _picture(value: Any) -> Pixels:
    return value if isinstance(value, np.ndarray) else bytes(value)


def _mask(value: Any) -> Pixels | None:
    """Returns a mask, or None for an empty file."""
    return _picture(value) if len(value) else None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _scores(value: Any) -> dict[str, float]:
    """Returns scores from {"name": …, "value": …} sequences, or from one number per name."""
    if not value:
        return {}
    if set(value) == {"name", "value"}:
        return {_text(name): float(score) for name, score in zip(value["name"], value["value"], strict=True)}
    return {name: float(score) for name, score in value.items()}
