"""Log of the files that an import has written: one line of JSON per file, appended when the file is complete.

With it an interrupted import resumes, and detects source files that have changed since.
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
class WrittenFile:
    """A complete file."""

    file: str
    """Path relative to the checkpoint."""
    bytes: int
    sha256: str
    tensor: str
    """Name of the tensor that it was made from."""
    source_sha256: str
    """SHA-256 of the source file from its start to the tensor's end."""


class ImportLog:
    """The log of one import, locked against other processes until its context exits; safe in threads."""

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        """Opens the log; raises UserError if another import has locked it or if it is of another `job`."""
        self._lock, self._file = threading.Lock(), path.open("a+")
        try:
            self.done = self._read(path, job)
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path, job: dict[str, Any]) -> dict[str, WrittenFile]:
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
            except ValueError:  # the import was killed while it wrote this line
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
        return {line["file"]: WrittenFile(**line) for line in lines[1:]}

    def add(self, done: WrittenFile) -> None:
        """Adds a complete file to the log."""
        with self._lock:
            self.done[done.file] = done
            self._write(json.dumps(asdict(done)) + "\n")

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def __enter__(self) -> "ImportLog":
        """Returns the log."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Closes and unlocks the log."""
        self._file.close()
