"""The layouts that models were first published in, told as other names for the tensors of a table."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from mllmsubj.convert.engine import Entry, Table


@dataclass(frozen=True)
class Rename:
    """How another layout calls a tensor: wherever `pattern` (a regex) is found in a name, `name` stands for it."""

    pattern: str
    name: str
    rows: tuple[tuple[int, int], ...] = ()
    """As in `Entry`, where that layout keeps several of our tensors in one, or their parts in another order."""
    height: int = 0


def renamed(entries: Iterable[Entry], renames: Iterable[Rename]) -> Table:
    """The same entries for another layout; every rename is tried, one after the other."""
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
    """Tensors that the other layout has as one, under `name`, one below the other, `sizes` rows each."""
    ends = [0, *accumulate(sizes)]
    return [Rename(pattern, name, (span,), ends[-1]) for pattern, span in zip(patterns, pairwise(ends), strict=True)]
