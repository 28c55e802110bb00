"""A checkpoint folder: `config.json`, `params/` (orbax), `tokenizer/`, `clip_tokenizer/`, `files.json`
(size and SHA-256 of each of their files).

Written under a temporary name and renamed, so that a folder that has `config.json` is whole.
"""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from mllmsubj.errors import UserError
from mllmsubj.sharding import flatten, parameter_shardings
from mllmsubj.typing import Params

TOKENIZERS = ("tokenizer", "clip_tokenizer")


def save(folder: str | Path, config: ConfigDict, params: Params, tokenizers: Path) -> None:
    """Writes a checkpoint; `tokenizers` is a folder with the two tokenizer folders, copied along.

    Raises UserError if `folder` exists: checkpoints are never overwritten.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise UserError(f"{folder} exists already; give another folder or delete it first")
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.mkdir(parents=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / "params", params)
        for name in TOKENIZERS:
            shutil.copytree(Path(tokenizers) / name, partial / name)
        (partial / "files.json").write_text(json.dumps(_listing(partial), indent=2))
        (partial / "config.json").write_text(config_text(config))
        os.rename(partial, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def config_text(config: ConfigDict) -> str:
    """A config as `config.json` holds it."""
    return config.to_json_best_effort(indent=2) + "\n"


def read_config(folder: str | Path) -> ConfigDict:
    """The config a checkpoint was made with."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{str(folder)!r} is no checkpoint: it has no config.json (a checkpoint is a folder, or 'tiny')"
        )
    try:
        return ConfigDict(json.loads(path.read_text(), object_hook=_with_tuples))
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no config: {' '.join(str(error).split())}") from None


def _with_tuples(node: dict) -> dict:
    """JSON knows lists only; a config's are tuples, which flags can override."""

    def as_tuple(value: object) -> object:
        return tuple(map(as_tuple, value)) if isinstance(value, list) else value

    return {key: as_tuple(value) for key, value in node.items()}


def has_params(folder: str | Path) -> bool:
    """Whether the checkpoint holds weights; the shipped 'tiny' may not yet."""
    return (Path(folder) / "params").is_dir()


def restore(folder: str | Path, expected: Params, mesh: jax.sharding.Mesh) -> Params:
    """Parameters in the shapes and dtypes of `expected`, each device reading its own shards.

    Raises UserError if files of the checkpoint are damaged, and if its parameters are not those that are expected,
    naming the first few.
    """
    path = Path(folder).absolute() / "params"
    if not path.is_dir():
        raise UserError(f"{folder} has no params folder")
    _check_files(Path(folder))
    shardings = parameter_shardings(expected, mesh)
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), expected, shardings
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found = dict(flatten(checkpointer.metadata(path).item_metadata.tree))
            _compare(str(folder), found, dict(flatten(expected)))
            return checkpointer.restore(path, target)
    except UserError:
        raise
    except Exception as error:  # of many types, often thousands of characters long
        raise UserError(f"cannot read the parameters in {path}: {' '.join(str(error).split())[:200]}") from None


def fingerprint(folder: str | Path) -> str:
    """12 hex digits that name a checkpoint: of SHA-256 over its config and the checksums of its files."""
    written, config = Path(folder) / "files.json", Path(folder) / "config.json"
    listing = written.read_text() if written.is_file() else json.dumps(_listing(Path(folder)))
    return hashlib.sha256((config.read_text() + listing).encode()).hexdigest()[:12]


def _sizes(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def _listing(folder: Path) -> dict[str, list]:
    def checksum(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return {name: [size, checksum(name)] for name, size in _sizes(folder).items()}


def _check_files(folder: Path) -> None:
    """Raises UserError if a file that `save` wrote is missing or cut short, as after a download that broke off."""
    written, found = folder / "files.json", _sizes(folder)
    for name, (size, _) in json.loads(written.read_text()).items() if written.is_file() else ():
        if found.get(name) != size:
            state = f"has {found[name]} bytes of {size}" if name in found else "is missing"
            raise UserError(f"checkpoint {folder} is damaged: {name} {state}; copy it again")


def _compare(where: str, found: dict, expected: dict) -> None:
    problems = [f"lacks {path}" for path in sorted(set(expected) - set(found))]
    problems += [f"has unknown {path}" for path in sorted(set(found) - set(expected))]
    problems += [
        f"{path} is {tuple(found[path].shape)}, the config says {tuple(leaf.shape)}"
        for path, leaf in expected.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"checkpoint {where} does not fit its config: {'; '.join(problems[:3])}{more}")
