"""A checkpoint folder: `config.json`, `params/` (orbax), `tokenizer/`, `clip_tokenizer/`, `files.json`
(size and SHA-256 of each of their files), and `base.json` if the parameters that it lacks lie in another checkpoint.

Written under a temporary name and renamed, so that a folder that has `config.json` is whole.
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
    """Where a checkpoint lies: "tiny" is the one that is shipped, a training run's is the `model` in its workdir."""
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
    """Writes a checkpoint; `tokenizers` is a folder with the two tokenizer folders, copied along.

    `base`: a checkpoint ("tiny" or a folder) that holds the parameters that `params` lacks; it is referred to, so it
    must stay as it is. `replace` puts the new checkpoint in the place of the one that is there, which nobody else may
    be writing. On several processes all call this, with the same arguments.
    Raises UserError if `folder` exists and is not to be replaced, or is no checkpoint.
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

    import orbax.checkpoint as ocp  # a third of a second: only where parameters are in its format

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
    """Renames `new` to `folder`, over a checkpoint that may be there; it is gone for the moment between two renames."""
    old = new.with_name(new.name + ".old")
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    if old.exists():
        for left in folder.parent.glob(f".{folder.name}.*"):  # of runs that were killed at this point, too
            shutil.rmtree(left, ignore_errors=True)


def config_text(config: ConfigDict) -> str:
    """A config as `config.json` holds it."""
    return config.to_json_best_effort(indent=2) + "\n"


def read_config(folder: str | Path) -> ConfigDict:
    """The config a checkpoint was made with."""
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
"""Config keys of checkpoints of before version 0.2 -> their names since."""


def _with_tuples(node: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; a config's are tuples, which flags can override. Keys get their names of today."""

    def as_tuple(value: object) -> object:
        return tuple(map(as_tuple, value)) if isinstance(value, list) else value

    return {RENAMED.get(key, key): as_tuple(value) for key, value in node.items()}


def restore(folder: str | Path, expected: Params) -> Params:
    """Parameters in the shapes, dtypes and shardings of `expected`, each device reading its own shards.

    What the folder lacks comes from its base, whose other parameters are ignored. Raises UserError for damaged
    files, a base that is gone or has changed, and parameters other than those that are expected.
    """
    (everything,) = restore_groups(folder, expected, [list(flatten(expected))])
    return unflatten(everything)


def restore_groups(
    folder: str | Path, expected: Params, groups: Iterable[Sequence[str]]
) -> Iterator[dict[str, jax.Array]]:
    """As `restore`, the paths of a group at a time: each is read when it is asked for, all are checked before."""
    wanted = flatten(with_sharding(expected, shardings_of(expected)))
    where = _located(folder, wanted)
    for group in groups:
        leaves: dict[str, jax.Array] = {}
        for part in dict.fromkeys(where[path] for path in group):
            leaves |= flatten(read(part, unflatten({p: wanted[p] for p in group if where[p] == part})))
        yield {path: leaves.pop(path) for path in group}


def _located(folder: str | Path, wanted: Mapping[str, Any]) -> dict[str, Path]:
    """Path of a parameter -> the folder that holds it. Raises UserError if they are not those that are wanted."""
    (_, own), *bases = chain = list(_chain(folder))
    found = {p: leaf for _, there in reversed(bases) for p, leaf in there.items() if p in wanted} | own
    if problems := differences(found, wanted):
        raise CheckpointError(f"checkpoint {folder} does not fit its config: {problems}")
    return {path: part for part, there in reversed(chain) for path in there}


def stored_paths(folder: str | Path) -> set[str]:
    """Paths of the parameters in a checkpoint, its base's included. Raises UserError as `restore` does."""
    return {path for _, there in _chain(folder) for path in there}


def _chain(folder: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A checkpoint, its base, and so on, with what lies in each itself."""
    part: Path | None = Path(folder).absolute()
    while part is not None:
        yield part, stored(part)
        part = _base(part)


def stored(folder: Path) -> dict[str, Any]:
    """Path -> metadata of the parameters that lie in the folder itself."""
    path = folder.absolute() / "params"  # orbax finds nothing by a relative path
    if not path.is_dir():
        raise CheckpointError(f"{folder} has no params folder")
    if problem := damage(folder):
        raise CheckpointError(f"checkpoint {folder} is damaged: {problem}; copy it again")
    import orbax.checkpoint as ocp  # a third of a second: only where parameters are in its format

    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return flatten(checkpointer.metadata(path).item_metadata.tree)
    except Exception as error:  # of many types
        raise CheckpointError(f"cannot read the parameters in {path}: {reason(error)}") from error


def read(folder: Path, target: Params) -> Params:
    """The parameters named in `target`, which may be some of those in the folder."""
    import orbax.checkpoint as ocp  # a third of a second: only where parameters are in its format

    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    arguments = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(folder.absolute() / "params", args=arguments)
    except Exception as error:  # of many types
        raise CheckpointError(f"cannot read the parameters in {folder / 'params'}: {reason(error)}") from error


def _reference(base: str | Path) -> dict[str, str]:
    """What `base.json` says; "tiny" is not a path, so that it is found wherever the package is installed."""
    folder = folder_of(base).absolute()
    name = "tiny" if folder == TINY.absolute() else str(folder)
    return {"checkpoint": name, "fingerprint": fingerprint(folder)}


def _base(folder: Path) -> Path | None:
    """The checkpoint with the parameters that this one lacks, which must be what it was."""
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
    """12 hex digits that name a checkpoint: of SHA-256 over its config and the checksums of its files.

    One of these files is `base.json` with the base's fingerprint, so that another base makes another name.
    """
    written, config = Path(folder) / "files.json", Path(folder) / "config.json"
    listing = written.read_text() if written.is_file() else json.dumps(_listing(Path(folder)))
    return hashlib.sha256((config.read_text() + listing).encode()).hexdigest()[:12]


def sizes(folder: Path) -> dict[str, int]:
    """Relative name -> bytes of every file below the folder."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}


def _listing(folder: Path) -> dict[str, list[Any]]:
    def checksum(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return {name: [size, checksum(name)] for name, size in sizes(folder).items()}


def damage(folder: Path) -> str | None:
    """The first file of those in `files.json` that is missing or cut short, as after a download that broke off."""
    written, found = folder / "files.json", sizes(folder)
    try:
        listing = json.loads(written.read_text()) if written.is_file() else {}
    except ValueError:
        return "files.json is cut short"
    for name, (size, *_) in listing.items():
        if found.get(name) != size:
            return f"{name} has {found[name]} bytes of {size}" if name in found else f"{name} is missing"
    return None


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """How two flat trees of shapes differ, the first few on one line; empty if they do not."""
    problems = [f"lacks {path}" for path in sorted(set(expected) - set(found))]
    problems += [f"has unknown {path}" for path in sorted(set(found) - set(expected))]
    problems += [
        f"{path} is {tuple(found[path].shape)}, the config says {tuple(leaf.shape)}"
        for path, leaf in expected.items()
        if path in found and tuple(found[path].shape) != tuple(leaf.shape)
    ]
    return "; ".join(problems[:3]) + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")


def reason(error: BaseException) -> str:
    """What went wrong, on one short line: what orbax raises is often thousands of characters long."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    number = re.search(r"os_error_code='(\d+)'", text)  # tensorstore's, at the end
    return os.strerror(int(number[1])) if number else text[:200]
