"""What an import has done so far: a line of JSON for each file, appended when the file is whole.

So an import that was killed goes on where it was, and notices if its sources are no longer what they were.
"""

import fcntl
import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mllmsubj.errors import CheckpointError


@dataclass(frozen=True)
class Done:
    """A file that is whole."""

    file: str
    """Relative to the checkpoint."""
    bytes: int
    sha256: str
    tensor: str
    """What it was made from."""
    source_sha256: str
    """Of the source file, from its start to the tensor's end."""


class Progress:
    """The log of one import; a context that nobody else can enter meanwhile. May be appended to from any thread."""

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        """`job`: what the import is asked to do; a log of another job is refused. Raises UserError then."""
        self._lock, self._file = threading.Lock(), path.open("a+")
        try:
            self.done = self._read(path, job)
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path, job: dict[str, Any]) -> dict[str, Done]:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(
                f"{path.parent} is being written by another import; wait for it or stop it"
            ) from error
        self._file.seek(0)
        lines = []
        for line in self._file:
            try:
                lines.append(json.loads(line))
            except ValueError:  # the line that it was killed in
                break
        if not lines:
            lines = [job]
        if changed := [key for key in job if lines[0].get(key) != job[key]]:
            raise CheckpointError(
                f"{path.parent} holds an import that was stopped and that had other {' and '.join(changed)}; give what "
                "was given then, or delete that folder to start again"
            )
        self._file.truncate(0)
        self._write("".join(json.dumps(line) + "\n" for line in lines))
        return {line["file"]: Done(**line) for line in lines[1:]}

    def add(self, done: Done) -> None:
        """Notes a file that is whole."""
        with self._lock:
            self.done[done.file] = done
            self._write(json.dumps(asdict(done)) + "\n")

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
