"""The whole import, into a draft folder that is renamed to the checkpoint when it is complete."""

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
from mllmsubj.checkpoints.importing.progress import ImportLog
from mllmsubj.checkpoints.importing.streaming import write_model
from mllmsubj.errors import CheckpointError

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "chat_template.jinja"),
)
SPARE_BYTES = 16 << 20
"""Free bytes of disk required in addition to the parameters."""


def import_models(
    workdir: Path,
    config: ConfigDict,
    models: Sequence[Model],
    tokenizers: Mapping[str, Path],
    dtype: np.dtype,
    on_bytes_read: Callable[[int], object] = lambda _: None,
) -> None:
    """Writes a checkpoint of `models` with `config` to `workdir`.

    The files of an interrupted import are kept in a hidden folder next to `workdir`, and the next call resumes from
    them. `tokenizers` maps names in the checkpoint to folders. `on_bytes_read` is called with numbers of bytes read.
    Raises UserError if `workdir` exists, a source has changed or is damaged, or a file cannot be written.
    """
    refuse_existing(workdir)
    draft = workdir.absolute().with_name(f".{workdir.name}.import")
    folder, leaves = draft / "checkpoint", [leaf for model in models for leaf in model.leaves]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ImportLog(draft / "progress.jsonl", _job(config, models, dtype)) as progress:
            missing = sum(prod(leaf.shape) * dtype.itemsize for leaf in leaves)
            _check_disk_space(folder, missing - sum(done.bytes for done in progress.done.values()))
            if not (folder / "params").is_dir():
                make_params(folder / "params", leaves)
            digests = [write_model(model, folder, progress, on_bytes_read) for model in models]
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
    """Raises UserError if `workdir` exists."""
    if workdir.exists():
        raise CheckpointError(f"{workdir} exists already; give another folder or delete it first")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer's files from a folder that may contain other files."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _job(config: ConfigDict, models: Sequence[Model], dtype: np.dtype) -> dict[str, Any]:
    """Returns what identifies an import: its source files, config and dtype."""
    sources = {f"{model.role}/{path.name}": path.stat().st_size for model in models for path in model.files}
    text = checkpoint.config_text(config).encode()
    return {"source files": sources, "config": hashlib.sha256(text).hexdigest(), "dtype": dtype.name}


def _check_disk_space(folder: Path, missing: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < missing + SPARE_BYTES:
        raise CheckpointError(
            f"{folder.parents[1]} has room for {free / 1e9:.2f} GB, the checkpoint needs {missing / 1e9:.2f} GB more; "
            "make room or give another workdir"
        )


def _manifest(
    models: Sequence[Model], digests: Sequence[Mapping[Path, str]], tokenizers: Mapping[str, Path], dtype: np.dtype
) -> dict[str, Any]:
    """Returns the contents of `import.json`: versions and sources of the checkpoint."""
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
    """Returns the contents of `files.json`; files with a digest in `known` are not read again."""

    def checksum(name: str) -> str:
        return known.get(name) or hashlib.sha256((folder / name).read_bytes()).hexdigest()

    return {
        name: [size, checksum(name)]
        for name, size in checkpoint.sizes(folder).items()
        if name not in ("files.json", "config.json")
    }
