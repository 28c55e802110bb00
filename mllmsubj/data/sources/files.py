"""Source of examples whose images are files in a folder, for manifests and UNO-1M's labels."""

import operator
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import SupportsIndex

from etils import epath

from mllmsubj.data.example import Example, Index, Unreadable
from mllmsubj.data.pixels import size_of
from mllmsubj.data.sources.indexing import check_index, make_index, read_sizes
from mllmsubj.errors import DataError


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """Description of one example; paths are relative to the source's folder."""

    references: tuple[str, ...]
    target: str
    prompt: str
    origin: str
    subject: str = ""
    masks: tuple[str | None, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    """(width, height) of the target, if known."""


class FilesSource:
    """Source of a list of entries."""

    def __init__(self, name: str, folder: epath.Path, entries: Sequence[IndexEntry]) -> None:
        """`name` identifies the entries, as the source's `repr` (see `Source`)."""
        self.name, self.folder, self.entries = name, folder, entries

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.entries)

    def __getitem__(self, number: SupportsIndex, /) -> Example:
        """Reads an example; raises Unreadable if it cannot be read."""
        entry = self.entries[check_index(operator.index(number), len(self))]
        return Example(
            references=tuple(self._read(path, f"{entry.origin}, reference") for path in entry.references),
            prompt=entry.prompt,
            target=self._read(entry.target, f"{entry.origin}, target"),
            subject=entry.subject,
            masks=tuple(None if path is None else self._read(path, f"{entry.origin}, mask") for path in entry.masks),
            scores=entry.scores,
            origin=entry.origin,
        )

    def index(self) -> Index:
        """Returns the index; unknown sizes of targets are read from their files' headers."""
        sizes = read_sizes(self._size, len(self))
        return make_index(sizes, [len(e.references) for e in self.entries], [e.scores for e in self.entries])

    def __repr__(self) -> str:
        """Returns the name of the source (see `Source`)."""
        return self.name

    def _size(self, number: int) -> tuple[int, int]:
        entry = self.entries[number]
        return entry.size or size_of(self.folder / entry.target, f"{entry.origin}, target {entry.target!r}")

    def _read(self, path: str, what: str) -> bytes:
        try:
            return (self.folder / path).read_bytes()
        except FileNotFoundError as error:
            raise Unreadable(f"{what} {path!r} is not there") from error
        except (OSError, ValueError) as error:  # ValueError: a name with a null character
            raise Unreadable(f"{what} {path!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def inside(path: str) -> str:
    """Returns the path, normalized; raises UserError if it leaves the folder that it is relative to."""
    normal = posixpath.normpath(path)
    if not path or posixpath.isabs(path) or normal == ".." or normal.startswith("../"):
        raise DataError(f"path {path!r} does not stay inside the folder of the file; give it relative to that folder")
    return normal
