"""Conversion of tables to the original layouts of models, by renaming their tensors."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from mllmsubj.convert.engine import Entry, Table


@dataclass(frozen=True)
class Rename:
    """Name of tensors in another layout: every match of the regex `pattern` in a name is replaced by `name`."""

    pattern: str
    name: str
    rows: tuple[tuple[int, int], ...] = ()
    """Rows as in `Entry`, if that layout fuses several of our tensors or orders their rows differently."""
    height: int = 0


def renamed(entries: Iterable[Entry], renames: Iterable[Rename]) -> Table:
    """Returns the entries for another layout; all renames are applied in order."""
    renames = list(renames)

    def one(entry: Entry) -> Entry:
        for rename in renames:
            source, found = re.subn(rename.pattern, rename.name, entry.source)
            if found:
                rows, height = (rename.rows, rename.height) if rename.rows else (entry.rows, entry.height)
                entry = replace(entry, source=source, rows=rows, height=height)
        return entry

    return [one(entry) for entry in entries]


def fused(patterns: Iterable[str], name: str, sizes: Iterable[int]) -> list[Rename]:
    """Returns renames of tensors that the other layout concatenates as `name`, `sizes` rows each."""
    ends = [0, *accumulate(sizes)]
    return [Rename(pattern, name, (span,), ends[-1]) for pattern, span in zip(patterns, pairwise(ends), strict=True)]
