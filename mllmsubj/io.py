"""Writing of files and folders, whole or not at all."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllmsubj.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


@contextmanager
def replacing(path: Path, unique: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it at the end and is deleted after a failure.

    `unique`: with a name of its own, for a file that several processes may write at the same time. Raises OSError
    unchanged.
    """
    middle = f".{uuid.uuid4().hex[:8]}" if unique else ""
    partial = path.with_name(f".{path.name}{middle}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary empty folder, which replaces `folder` on success and is deleted on failure.

    An existing folder is missing for the moment between two renames.
    """
    partial, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{end}") for end in ("", ".old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `replacing`, but creates the parent folder and raises UserError if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            yield partial
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def write_png(image: "Image.Image", path: Path, **options: Any) -> None:
    """Writes a PNG whole or not at all; raises UserError if that fails."""
    with writing(path) as partial:
        image.save(partial, format="PNG", **options)
