"""Output paths of commands, checked before any work."""

import os
from pathlib import Path

from mllmsubj.errors import UserError


def png_path(output: str | None) -> Path:
    """Returns the path in `--output`, whose folder may be missing; raises UserError if no PNG can be written there."""
    if not output:
        raise UserError("no output; name the PNG to write with --output=FILE.png")
    path = Path(output).expanduser()
    if path.suffix.lower() != ".png":
        raise UserError(f"output {output!r} is not a .png file; only PNGs are written")
    if path.is_dir():
        raise UserError(f"output {output!r} is a folder; name a file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot write output {output!r}: {folder} is not a folder that can be written to")
    return path


def workdir_path(workdir: str) -> Path:
    """Returns the folder in `--workdir`, which may be missing; raises UserError if it cannot be a folder."""
    if "://" in workdir:
        raise UserError(f"workdir {workdir!r} is not a folder; give a local one")
    path = Path(workdir).expanduser()
    if path.exists() and not path.is_dir():
        raise UserError(f"workdir {workdir!r} is a file; name a folder")
    return path
