"""The import as a whole: a draft beside the checkpoint, which becomes it when nothing is missing."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.importing.leaves import make_params
from mllmsubj.checkpoints.importing.models import Model
from mllmsubj.checkpoints.importing.passing import write_model
from mllmsubj.checkpoints.importing.progress import Progress
from mllmsubj.errors import CheckpointError

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "chat_template.jinja"),
)
SPARE = 16 << 20
"""Bytes of disk beyond the parameters."""


def import_models(
    workdir: Path,
    config: ConfigDict,
    models: Sequence[Model],
    tokenizers: Mapping[str, Path],
    dtype: np.dtype,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Writes a checkpoint of `models` with `config`.

    What an import that was stopped has written is kept, in a hidden folder beside `workdir`. `tokenizers`: name in
    the checkpoint -> a folder that holds it. `advance` hears how many bytes of the sources were read.
    Raises UserError if `workdir` exists, a source changed or is damaged, or something cannot be written.
    """
    refuse_existing(workdir)
    draft = workdir.absolute().with_name(f".{workdir.name}.import")
    folder, leaves = draft / "checkpoint", [leaf for model in models for leaf in model.leaves]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Progress(draft / "progress.jsonl", _job(config, models, dtype)) as progress:
            missing = sum(prod(leaf.shape) * dtype.itemsize for leaf in leaves)
            _check_room(folder, missing - sum(done.bytes for done in progress.done.values()))
            if not (folder / "params").is_dir():
                make_params(folder / "params", leaves)
            digests = [write_model(model, folder, progress, advance) for model in models]
            for name, source in tokenizers.items():
                copy_tokenizer(source, folder / name)
            manifest = _manifest(models, digests, tokenizers, dtype)
            (folder / "import.json").write_text(json.dumps(manifest, indent=2) + "\n")
            known = {done.file: done.sha256 for done in progress.done.values()}
            (folder / "files.json").write_text(json.dumps(_listing(folder, known), indent=2))
            (folder / "config.json").write_text(checkpoint.config_text(config))
            refuse_existing(workdir)
            os.rename(folder, workdir)
        shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {error.filename or workdir}: {error.strerror or error}; what is done is kept in {draft}: "
            "mend that and run the same command again"
        ) from error


def refuse_existing(workdir: Path) -> None:
    """Raises UserError if something is there already."""
    if workdir.exists():
        raise CheckpointError(f"{workdir} exists already; give another folder or delete it first")


def copy_tokenizer(source: Path, target: Path) -> None:
    """A tokenizer's files, which may lie among a model's."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _job(config: ConfigDict, models: Sequence[Model], dtype: np.dtype) -> dict[str, Any]:
    """What makes an import this one and no other."""
    sources = {f"{model.role}/{path.name}": path.stat().st_size for model in models for path in model.files}
    text = checkpoint.config_text(config).encode()
    return {"source files": sources, "config": hashlib.sha256(text).hexdigest(), "dtype": dtype.name}


def _check_room(folder: Path, missing: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < missing + SPARE:
        raise CheckpointError(
            f"{folder.parents[1]} has room for {free / 1e9:.2f} GB, the checkpoint needs {missing / 1e9:.2f} GB more; "
            "make room or give another workdir"
        )


def _manifest(
    models: Sequence[Model], digests: Sequence[Mapping[Path, str]], tokenizers: Mapping[str, Path], dtype: np.dtype
) -> dict[str, Any]:
    """What the checkpoint was made from."""
    return {
        "versions": {name: version(name) for name in ("mllmsubj", "orbax-checkpoint", "ml-dtypes", "numpy")},
        "dtype": dtype.name,
        "models": {
            model.role: {
                "folder": str(model.folder),
                "config": asdict(model.config),
                "parameters": sum(prod(leaf.shape) for leaf in model.leaves),
                "files": {path.name: [path.stat().st_size, digest] for path, digest in hashed.items()},
            }
            for model, hashed in zip(models, digests, strict=True)
        },
        "tokenizers": {name: str(folder) for name, folder in tokenizers.items()},
    }


def _listing(folder: Path, known: Mapping[str, str]) -> dict[str, list[Any]]:
    """As `files.json` wants it; files that were hashed when they were written are not read again."""

    def checksum(name: str) -> str:
        return known.get(name) or hashlib.sha256((folder / name).read_bytes()).hexdigest()

    return {
        name: [size, checksum(name)]
        for name, size in checkpoint.sizes(folder).items()
        if name not in ("files.json", "config.json")
    }
