"""Source of folders of parquet files that contain images, as Hugging Face stores data sets.

Reading an example requires reading its row group, of which the last few are cached. Sequential access is cheap; in
random order, groups of a hundred rows of half a megabyte cost 50 MB per example, so for training use files with row
groups of a few rows, or run `mllmsubj data pack` once. The index is made from the target column of all files unless
they have width and height.
"""

import hashlib
import operator
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from mllmsubj.data.example import Example, Index, Unreadable
from mllmsubj.data.sources.indexing import THREADS, check_index, make_index
from mllmsubj.data.sources.layouts import ParquetLayout, find_layout
from mllmsubj.errors import DataError

KEPT_GROUPS = 4
"""Number of cached row groups, besides those in use by threads; one of Subjects200K is about 100 MB."""


class ParquetSource:
    """Source of all rows of the files below a folder; safe in threads."""

    def __init__(self, folder: epath.Path, files: Sequence[epath.Path]) -> None:
        """Reads the footers of all files; raises UserError if their columns do not fit or there are no rows."""
        self._files = files
        with ThreadPoolExecutor(THREADS) as pool:
            self._footers = list(pool.map(_footer, self._files))
        self._layout = self._agree()
        self._groups = [(f, g) for f, footer in enumerate(self._footers) for g in range(footer.num_row_groups)]
        rows = [self._footers[f].row_group(g).num_rows for f, g in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        if not self._starts[-1]:
            raise DataError(f"{folder}: its {len(self._files)} parquet files have no rows")
        self._first_rows = np.asarray([sum(self._group_rows(f)[:g]) for f, g in self._groups])
        self._kept: OrderedDict[int, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()
        digest = hashlib.sha256()
        for file, footer in zip(self._files, self._footers, strict=True):
            length = file.stat().length
            digest.update(f"{file.relative_to(folder)} {footer.num_rows} {length}\n".encode())
        self._name = (
            f"parquet {self._layout.name}, {len(self)} examples, sha256 of names and sizes {digest.hexdigest()[:16]}"
        )

    def __len__(self) -> int:
        """Returns the number of examples."""
        return int(self._starts[-1]) * self._layout.examples_per_row

    def __getitem__(self, number: SupportsIndex, /) -> Example:
        """Reads an example; raises Unreadable if it cannot be read."""
        number = check_index(operator.index(number), len(self))
        row, which = divmod(number, self._layout.examples_per_row)
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        in_group = row - int(self._starts[group])
        origin = f"{self._files[self._groups[group][0]].name}, row {self._first_rows[group] + in_group}"
        values = self._group(group).slice(in_group, 1).to_pylist()[0]
        return self._layout.example(values, which, origin)

    def index(self) -> Index:
        """Returns the index, from the columns of all files that it requires."""
        sizes, references, scores = [], [], []
        with ThreadPoolExecutor(KEPT_GROUPS) as pool:
            for part in pool.map(self._index_group, range(len(self._groups))):
                for row in part:
                    sizes.append(row[0])
                    references.append(row[1])
                    scores.append(row[2])
        return make_index(sizes, references, scores)

    def __repr__(self) -> str:
        """Returns the name of the source (see `Source`)."""
        return self._name

    def _agree(self) -> ParquetLayout:
        """Returns the layout of the first file; raises UserError if another file's columns differ."""
        schema = self._footers[0].schema.to_arrow_schema()
        layout = find_layout(schema, str(self._files[0]))
        for file, footer in zip(self._files, self._footers, strict=True):
            other = footer.schema.to_arrow_schema()
            for name in layout.columns:
                if name not in other.names or other.field(name).type != schema.field(name).type:
                    found = other.field(name).type if name in other.names else "missing"
                    raise DataError(
                        f"{file}: column {name} is {found}; in {self._files[0].name} it is {schema.field(name).type}"
                    )
        return layout

    def _group_rows(self, file: int) -> list[int]:
        footer = self._footers[file]
        return [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]

    def _group(self, number: int) -> pa.Table:
        """Returns a row group, which is read once even if several threads request it."""
        with self._lock:
            reading = self._kept.get(number)
            if mine := reading is None:
                reading = self._kept[number] = Future()
                while len(self._kept) > KEPT_GROUPS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
        if mine:
            try:
                reading.set_result(self._read(number, self._layout.columns))
            except BaseException as error:  # of any type, since other threads wait for the result
                reading.set_exception(error)
        return reading.result()

    def _read(self, number: int, columns: tuple[str, ...]) -> pa.Table:
        file, group = self._groups[number]
        path = self._files[file]
        try:
            with path.open("rb") as opened, pq.ParquetFile(opened, metadata=self._footers[file]) as parquet:
                return parquet.read_row_group(group, columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise Unreadable(f"{path}, row group {group} cannot be read: {' '.join(str(error).split())}") from error

    def _index_group(self, number: int) -> list[tuple[tuple[int, int], int, dict[str, float]]]:
        try:
            rows = self._read(number, self._layout.index_columns).to_pylist()
        except Unreadable:
            count = int(self._starts[number + 1] - self._starts[number])
            return [((0, 0), 1, {})] * (count * self._layout.examples_per_row)
        return [entry for row in rows for entry in [self._layout.entry(row)] * self._layout.examples_per_row]


def files_below(folder: epath.Path) -> list[epath.Path]:
    """Returns the parquet files below a folder, sorted; hidden ones may be incomplete downloads and are skipped."""
    seen = [each for each in folder.iterdir() if not each.name.startswith(".")]
    below = [file for each in seen if each.is_dir() for file in files_below(each)]
    return sorted(below + [each for each in seen if each.suffix == ".parquet" and not each.is_dir()])


def _footer(path: epath.Path) -> pq.FileMetaData:
    try:
        with path.open("rb") as file, pq.ParquetFile(file) as parquet:
            return parquet.metadata
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {' '.join(str(error).split())}") from error
