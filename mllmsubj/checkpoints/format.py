"""The format of checkpoint folders, and functions that read and write them.

A checkpoint contains `config.json`, `params/` (Orbax), `tokenizer/`, `clip_tokenizer/`, `base.json` if its other
parameters are stored in another checkpoint, and `files.json` (size and SHA-256 of each file but the config). It is
written under a temporary name and renamed, so that a folder with a `config.json` is complete.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mllmsubj.errors import CheckpointError, UserError
from mllmsubj.parallel.multihost import on_first_process
from mllmsubj.parallel.sharding import shardings_of, with_sharding
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params

TINY = Path(__file__).parents[1] / "assets" / "tiny"
TOKENIZERS = ("tokenizer", "clip_tokenizer")


def folder_of(checkpoint: str | Path) -> Path:
    """Returns the folder of a checkpoint: the shipped one for "tiny", and `WORKDIR/model` for a run's workdir."""
    if str(checkpoint) == "tiny":
        return TINY
    folder = Path(checkpoint).expanduser()
    return folder / "model" if (folder / "model" / "config.json").is_file() else folder


def save(
    folder: str | Path,
    config: ConfigDict,
    params: Params,
    tokenizers: Path,
    base: str | Path | None = None,
    replace: bool = False,
) -> None:
    """Writes a checkpoint, with copies of the two tokenizer folders in `tokenizers`.

    `base` is a checkpoint ("tiny" or a folder) with the parameters that `params` lacks; it is stored as a reference, so
    it must not change. `replace` overwrites an existing checkpoint, which no other process may be writing. In a
    multi-process run, every process must call this function with the same arguments.
    Raises UserError if `folder` exists and `replace` is False, or if it exists and is not a checkpoint.
    """
    folder = Path(folder).absolute()

    def start() -> str:
        if folder.exists() and not (replace and (folder / "config.json").is_file()):
            raise CheckpointError(f"{folder} exists already; give another folder or delete it first")
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        partial.mkdir(parents=True)
        return str(partial)

    def finish() -> None:
        for name in TOKENIZERS:
            shutil.copytree(Path(tokenizers) / name, partial / name)
        if base is not None:
            (partial / "base.json").write_text(json.dumps(_reference(base), indent=2))
        (partial / "files.json").write_text(json.dumps(_listing(partial), indent=2))
        (partial / "config.json").write_text(config_text(config))
        _swap(partial, folder)

    import orbax.checkpoint as ocp  # imported late: it takes a third of a second

    partial = folder
    try:
        partial = Path(on_first_process(start))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / "params", params)
        on_first_process(finish)
    except UserError:
        raise
    except Exception as error:
        raise CheckpointError(f"cannot write {folder}: {reason(error)}") from error
    finally:
        if partial != folder and jax.process_index() == 0:
            shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`, replacing a checkpoint there, which is absent for a moment between two renames."""
    old = new.with_name(new.name + ".old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    if old.exists():
        for left in folder.parent.glob(f".{folder.name}.*"):  # includes those of runs that were killed here
            shutil.rmtree(left, ignore_errors=True)


def config_text(config: ConfigDict) -> str:
    """Returns a config as the text of `config.json`."""
    return config.to_json_best_effort(indent=2) + "\n"


def read_config(folder: str | Path) -> ConfigDict:
    """Returns a checkpoint's config, with renamed keys updated; raises UserError if it cannot be read."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{str(folder)!r} is no checkpoint: it has no config.json (a checkpoint is a folder, or 'tiny')"
        )
    try:
        return ConfigDict(json.loads(path.read_text(), object_hook=_with_tuples))
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no config: {' '.join(str(error).split())}") from error


RENAMED = {
    "accumulate": "grad_accum_steps",
    "cache_parts": "cached_features",
    "cooldown_steps": "decay_steps",
    "drop_beside": "drop_subject_with_reference_view",
    "grain": "noise",
    "judge_every_steps": "eval_every_steps",
    "judge_guidance": "eval_guidance",
    "judge_steps": "eval_sampling_steps",
    "judged": "num_eval_examples",
    "light": "brightness",
    "long_side_several": "long_side_multi",
    "max_bad_steps": "max_nonfinite_steps",
    "off": "jitter",
    "pad_to": "pad_to_multiple",
    "seen_weight": "auxiliary_weight",
    "shares": "task_shares",
    "silent": "vision_only_share",
    "unusual": "pose_randomness",
    "window": "crop_size",
}
"""Config keys in checkpoints from before version 0.2 -> current names."""


def _with_tuples(node: dict[str, Any]) -> dict[str, Any]:
    """Converts JSON's lists to tuples, as configs have them, and renames old keys (see `RENAMED`)."""

    def as_tuple(value: object) -> object:
        return tuple(map(as_tuple, value)) if isinstance(value, list) else value

    return {RENAMED.get(key, key): as_tuple(value) for key, value in node.items()}


def restore(folder: str | Path, expected: Params) -> Params:
    """Restores parameters with the shapes, dtypes and shardings of `expected`; each device reads its own shards.

    Parameters that the folder lacks come from its base, whose other parameters are ignored. Raises UserError for
    damaged files, a missing or changed base, and parameters that differ from the expected ones.
    """
    (everything,) = restore_groups(folder, expected, [list(flatten(expected))])
    return unflatten(everything)


def restore_groups(
    folder: str | Path, expected: Params, groups: Iterable[Sequence[str]]
) -> Iterator[dict[str, jax.Array]]:
    """Like `restore`, but yields one group of paths at a time: all are checked first, and each is read when needed."""
    wanted = flatten(with_sharding(expected, shardings_of(expected)))
    where = _located(folder, wanted)
    for group in groups:
        leaves: dict[str, jax.Array] = {}
        for part in dict.fromkeys(where[path] for path in group):
            leaves |= flatten(read(part, unflatten({p: wanted[p] for p in group if where[p] == part})))
        yield {path: leaves.pop(path) for path in group}


def _located(folder: str | Path, wanted: Mapping[str, Any]) -> dict[str, Path]:
    """Returns parameter path -> folder that contains it; raises UserError if they differ from those in `wanted`."""
    (_, own), *bases = chain = list(_chain(folder))
    found = {p: leaf for _, there in reversed(bases) for p, leaf in there.items() if p in wanted} | own
    if problems := describe_differences(found, wanted):
        raise CheckpointError(f"checkpoint {folder} does not fit its config: {problems}")
    return {path: part for part, there in reversed(chain) for path in there}


def stored_paths(folder: str | Path) -> set[str]:
    """Returns the paths of all parameters in a checkpoint and its base; raises UserError as `restore` does."""
    return {path for _, there in _chain(folder) for path in there}


def _chain(folder: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields a checkpoint, its base, and so on, each with the parameters that it contains itself."""
    part: Path | None = Path(folder).absolute()
    while part is not None:
        yield part, stored(part)
        part = _base(part)


def stored(folder: Path) -> dict[str, Any]:
    """Returns path -> metadata for the parameters in the folder itself, without its base's."""
    path = folder.absolute() / "params"  # Orbax requires an absolute path
    if not path.is_dir():
        raise CheckpointError(f"{folder} has no params folder")
    if problem := find_damage(folder):
        raise CheckpointError(f"checkpoint {folder} is damaged: {problem}; copy it again")
    import orbax.checkpoint as ocp  # imported late: it takes a third of a second

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return flatten(checkpointer.metadata(path).item_metadata.tree)
    except Exception as error:  # Orbax raises many types
        raise CheckpointError(f"cannot read the parameters in {path}: {reason(error)}") from error


def read(folder: Path, target: Params) -> Params:
    """Reads the parameters in `target`, which may be a subset of those in the folder."""
    import orbax.checkpoint as ocp  # imported late: it takes a third of a second

    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    arguments = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder.absolute() / "params", args=arguments)
    except Exception as error:  # Orbax raises many types
        raise CheckpointError(f"cannot read the parameters in {folder / 'params'}: {reason(error)}") from error


def _reference(base: str | Path) -> dict[str, str]:
    """Returns the contents of `base.json`; "tiny" is stored by name, independent of where the package is installed."""
    folder = folder_of(base).absolute()
    name = "tiny" if folder == TINY.absolute() else str(folder)
    return {"checkpoint": name, "fingerprint": fingerprint(folder)}


def _base(folder: Path) -> Path | None:
    """Returns the folder of a checkpoint's base, or None; raises UserError if the base is missing or has changed."""
    if not (folder / "base.json").is_file():
        return None
    said = json.loads((folder / "base.json").read_text())
    base = folder_of(said["checkpoint"])
    name = f"checkpoint {folder} needs its base {said['checkpoint']} with fingerprint {said['fingerprint']}"
    if not (base / "config.json").is_file():
        raise CheckpointError(f"{name}, which is no longer there; put it back, or a link to where it is")
    if (now := fingerprint(base)) != said["fingerprint"]:
        raise CheckpointError(f"{name}, but what lies there now has {now}; put back the one it was trained on")
    return base


def fingerprint(folder: str | Path) -> str:
    """Returns 12 hex digits that identify a checkpoint: a SHA-256 of its config and the checksums of its files.

    The files include `base.json`, which contains the base's fingerprint, so the result depends on the base as well.
    """
    written, config = Path(folder) / "files.json", Path(folder) / "config.json"
    listing = written.read_text() if written.is_file() else json.dumps(_listing(Path(folder)))
    return hashlib.sha256((config.read_text() + listing).encode()).hexdigest()[:12]


def sizes(folder: Path) -> dict[str, int]:
    """Returns relative name -> size in bytes for every file below the folder."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def _listing(folder: Path) -> dict[str, list[Any]]:
    def checksum(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return {name: [size, checksum(name)] for name, size in sizes(folder).items()}


def find_damage(folder: Path) -> str | None:
    """Returns a message about the first file in `files.json` that is missing or has another size, or None."""
    written, found = folder / "files.json", sizes(folder)
    try:
        listing = json.loads(written.read_text()) if written.is_file() else {}
    except ValueError:
        return "files.json is cut short"
    for name, (size, *_) in listing.items():
        if found.get(name) != size:
            return f"{name} has {found[name]} bytes of {size}" if name in found else f"{name} is missing"
    return None


def describe_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Returns the first differences of two flat trees of shapes, on one line; empty if there are none."""
    problems = [f"lacks {path}" for path in sorted(set(expected) - set(found))]
    problems += [f"has unknown {path}" for path in sorted(set(found) - set(expected))]
    problems += [
        f"{path} is {tuple(found[path].shape)}, the config says {tuple(leaf.shape)}"
        for path, leaf in expected.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]
    return "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")


def reason(error: BaseException) -> str:
    """Returns an error's cause on one short line; messages of Orbax are often thousands of characters long."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    number = re.search(r"os_error_code='(\d+)'", text)  # TensorStore puts it at the end
    return os.strerror(int(number[1])) if number else text[:200]
