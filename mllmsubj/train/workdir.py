"""The workdir of a run, with one config for all its starts and one start at a time."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mllmsubj.checkpoints.format import config_text, read_config, reason
from mllmsubj.errors import UserError
from mllmsubj.io import replacing
from mllmsubj.parallel.multihost import on_first_process
from mllmsubj.tree import flatten

CHANGEABLE = (
    "mesh",
    "compute",
    "log",
    "checkpoint",
    "evals",
    "data.threads",
    "data.prefetch",
    "data.cache",
    "data.cached_features",
    "train.stage2.steps",
)
"""Keys and sections that a later start may change: how to run, not what to train; and the last stage's length, which
changes nothing before its end."""


@contextmanager
def open_workdir(workdir: str | Path, config: ConfigDict) -> Iterator[bool]:
    """Locks a workdir for one run; yields whether a run started there before.

    The first start writes `config.json`; later ones must have the same config, but for `CHANGEABLE`, and replace the
    file. If a UserError ends a first start before its first checkpoint, the file is removed. On several processes all
    call this; process 0 does the work.
    Raises UserError for another config, naming the keys, for a workdir that another run on this machine uses, and
    for one that cannot be written.
    """
    workdir = Path(workdir).absolute()
    with ExitStack() as stack:

        def start() -> bool:
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(workdir))
                for left in (*workdir.glob(".base.*"), *workdir.glob(".model.*")):  # half-written by a killed run
                    shutil.rmtree(left, ignore_errors=True)
                resumes = (workdir / "config.json").exists()
                if resumes and (wrong := forbidden_changes(read_config(workdir), config)):
                    raise UserError(
                        f"{workdir} contains a run with another config: {wrong}; start with that config, or give "
                        f"another workdir"
                    )
                with replacing(workdir / "config.json") as partial:
                    partial.write_text(config_text(config))
            except OSError as error:
                raise UserError(f"cannot write workdir {workdir}: {reason(error)}") from error
            return resumes

        resumes = on_first_process(start)
        try:
            yield resumes
        except UserError:
            if not resumes and jax.process_index() == 0 and not any(workdir.glob("checkpoints/[0-9]*")):
                (workdir / "config.json").unlink(missing_ok=True)
            raise


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks a workdir; the lock ends with the process at the latest. Raises UserError if another process has it."""
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"another run is using {workdir} (process {file.read().strip()}); stop it, or give another workdir"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # file systems without locks
                raise
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def is_locked(workdir: Path) -> bool:
    """Returns whether a run on this machine has locked the workdir."""
    try:
        with locked(workdir):
            return False
    except UserError:
        return True


def forbidden_changes(saved: ConfigDict, given: ConfigDict) -> str:
    """Returns the first few keys that must not differ but do, on one line."""
    old, new = (_flat(config_text(config)) for config in (saved, given))
    problems = [
        f"{key}: {_shown(old, key)} there, {_shown(new, key)} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ...) != new.get(key, ...)
        and not any(key == allowed or key.startswith(allowed + ".") for allowed in CHANGEABLE)
    ]
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more


def _flat(text: str) -> dict[str, Any]:
    return {path.replace("/", "."): value for path, value in flatten(json.loads(text)).items()}


def _shown(config: dict[str, Any], key: str) -> str:
    text = json.dumps(config[key], ensure_ascii=False) if key in config else "absent"
    return text if len(text) <= 40 else text[:39] + "…"
