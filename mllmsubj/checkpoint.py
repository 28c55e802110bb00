"""A checkpoint folder: `config.json`, `params/` (orbax), `tokenizer/`, `clip_tokenizer/`.

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
        (partial / "config.json").write_text(config.to_json_best_effort(indent=2))
        os.rename(partial, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_config(folder: str | Path) -> ConfigDict:
    """The config a checkpoint was made with."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{str(folder)!r} is no checkpoint: it has no config.json (a checkpoint is a folder, or 'tiny')"
        )
    try:
        return ConfigDict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def has_params(folder: str | Path) -> bool:
    """Whether the checkpoint holds weights; the shipped 'tiny' may not yet."""
    return (Path(folder) / "params").is_dir()


def restore(folder: str | Path, expected: Params, mesh: jax.sharding.Mesh) -> Params:
    """Parameters in the shapes and dtypes of `expected`, each device reading its own shards.

    Raises UserError, naming the first few, if the checkpoint's parameters are not those that are expected.
    """
    path = Path(folder).absolute() / "params"
    if not path.is_dir():
        raise UserError(f"{folder} has no params folder")
    with ocp.StandardCheckpointer() as checkpointer:
        found = dict(flatten(checkpointer.metadata(path).item_metadata.tree))
        _compare(str(folder), found, dict(flatten(expected)))
        shardings = parameter_shardings(expected, mesh)
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), expected, shardings
        )
        return checkpointer.restore(path, target)


def fingerprint(folder: str | Path) -> str:
    """12 hex digits of SHA-256 over the checkpoint's config and the checksums orbax keeps of its parameters."""
    digest = hashlib.sha256()
    root = Path(folder)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(root)).encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


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
