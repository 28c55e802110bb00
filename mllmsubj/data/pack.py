"""Packing of any source into ArrayRecord shards (see sources/array_record.py); interrupted runs resume by shard."""

import io
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from PIL import Image

from mllmsubj.data.check import check_example, in_order
from mllmsubj.data.example import Example, Pixels, Source, Unreadable
from mllmsubj.data.sources.array_record import (
    FINISHED,
    INDEX,
    UNFINISHED,
    VERSION,
    PackSource,
    index_arrays,
    index_of_arrays,
    read_arrays,
    write_record,
)
from mllmsubj.data.sources.indexing import make_index
from mllmsubj.errors import DataError
from mllmsubj.io import replacing

EXAMPLES_PER_SHARD = 2000
"""Examples per shard by default: at most about a gigabyte of 512-pixel JPEG pairs."""


@dataclass(frozen=True)
class PackCallbacks:
    """Callbacks: `done` with a number of finished examples, `skipped` with the reason for each skipped example."""

    done: Callable[[int], object]
    skipped: Callable[[str], object]


def pack(source: Source, folder: Path, shards: int | None, threads: int, progress: PackCallbacks) -> PackSource:
    """Packs every readable example of a source; raises UserError if the folder contains anything else."""
    plan = _plan(source, folder, shards)
    if (folder / FINISHED).exists():
        progress.done(plan["examples"])
        return PackSource(epath.Path(folder))
    counts, parts = {}, []
    for number in range(plan["shards"]):
        name = f"data-{number:05d}-of-{plan['shards']:05d}.array_record"
        start, stop = (plan["examples"] * i // plan["shards"] for i in (number, number + 1))
        if (folder / name).exists():
            progress.done(stop - start)
        else:
            _write_shard(source, range(start, stop), folder / name, threads, progress)
        parts.append(read_arrays(epath.Path(_part(folder / name))))
        counts[name] = len(parts[-1]["width"])
    if not sum(counts.values()):
        raise DataError(
            f"none of the {plan['examples']} examples of {source!r} can be read; `mllmsubj data check` says why"
        )
    _write_arrays(folder / INDEX, _joined(parts))
    about = dict(
        version=VERSION,
        source=plan["source"],
        examples=sum(counts.values()),
        skipped=plan["examples"] - sum(counts.values()),
        shards={name: count for name, count in counts.items() if count},
    )
    _write(folder / FINISHED, json.dumps(about, indent=2).encode())
    for leftover in [folder / UNFINISHED, *map(_part, map(folder.joinpath, counts))]:
        leftover.unlink()
    return PackSource(epath.Path(folder))


def _plan(source: Source, folder: Path, shards: int | None) -> dict[str, Any]:
    """Returns the pack's source, examples and shards: those stored by an interrupted run, or new ones."""
    begun = next((folder / name for name in (FINISHED, UNFINISHED) if (folder / name).exists()), None)
    if begun is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(f"{folder} is not empty and no pack; name a new folder with --output=DIR")
        if not len(source):
            raise DataError(f"{source!r} has no examples to pack")
        shards = shards or -(-len(source) // EXAMPLES_PER_SHARD)
        if shards > len(source):
            raise DataError(f"{shards} shards for {len(source)} examples; use at most as many as examples")
        folder.mkdir(parents=True, exist_ok=True)
        plan = dict(source=repr(source), examples=len(source), shards=shards)
        _write(folder / UNFINISHED, json.dumps(plan, indent=2).encode())
        return plan
    plan = json.loads(begun.read_text())
    if plan["source"] != repr(source):
        raise DataError(f"{folder} is a pack of {plan['source']}, not of {source!r}; name another folder")
    if begun.name == FINISHED:
        return plan
    if shards and shards != plan["shards"]:
        raise DataError(f"{folder} was begun with --shards={plan['shards']}, not {shards}; go on with that number")
    return plan


def _write_shard(source: Source, numbers: range, path: Path, threads: int, progress: PackCallbacks) -> None:
    """Writes a shard, after its part of the index, so that a shard under its final name is complete."""

    def read(number: int) -> tuple[Example, bytes, tuple[int, int]] | Unreadable:
        try:
            example = source[number]
            size = check_example(example)
        except Unreadable as error:
            return error
        return example, write_record(_as_files(example)), size

    kept, sizes = [], []
    with replacing(path) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")  # images are compressed already
        with closing(writer):
            for result in in_order(read, numbers, threads):
                if isinstance(result, Unreadable):
                    progress.skipped(str(result))
                else:
                    example, record, size = result
                    writer.write(record)
                    kept.append((len(example.references), example.scores))
                    sizes.append(size)
                progress.done(1)
        _write_arrays(
            _part(path), index_arrays(make_index(sizes, [count for count, _ in kept], [each for _, each in kept]))
        )


def _as_files(example: Example) -> Example:
    return replace(
        example,
        references=tuple(map(_as_file, example.references)),
        target=_as_file(example.target),
        masks=tuple(None if mask is None else _as_file(mask) for mask in example.masks),
    )


def _as_file(pixels: Pixels) -> bytes:
    """Returns a file unchanged and an array as PNG."""
    if isinstance(pixels, bytes):
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()


def _part(shard: Path) -> Path:
    return shard.with_suffix(".npz")


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenates indexes; a score that is missing from a part is NaN there."""
    names = {name for part in parts for name in part}
    joined = {}
    for name in sorted(names):
        joined[name] = np.concatenate(
            [part.get(name, np.full(len(part["width"]), np.nan, np.float32)) for part in parts]
        )
    return index_arrays(index_of_arrays(joined))


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    _write(path, file.getvalue())


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)
