"""The import of a FLUX-sized transformer against a plain read, and a plain copy, of the same files."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open
from tqdm import tqdm

from mllmsubj.checkpoints.format import TINY
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.convert import clip, flux, internvl, vae
from mllmsubj.convert.engine import Table
from mllmsubj.errors import UserError
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectConfig, SubjectModel
from mllmsubj.tree import flatten
from mllmsubj.typing import Params

FULL = 24
"""Gigabytes of FLUX.1-dev in bfloat16."""
SHARD = 9_980_000_000
"""Bytes of its largest shard."""
NUMBERS = 32 << 20
"""Random numbers drawn; tensors repeat them from another place each."""

IMPORT = r"""
import re, sys
from pathlib import Path
from mllmsubj.cli.main import run
run(["mllmsubj", "import", *sys.argv[1:]])
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""
"""The command, and its peak memory: what the system keeps for a parent starts with the parent's own."""


def run(gigabytes: int, folder: str | None) -> dict[str, Any]:
    """Seconds of each, once, files out of the page cache; frees the disk. Raises UserError if it lacks room."""
    parent = Path(folder or tempfile.gettempdir()).expanduser()
    if not parent.is_dir():
        raise UserError(f"folder {str(parent)!r} is not there")
    if (free := shutil.disk_usage(parent).free) < 2.1e9 * gigabytes:
        raise UserError(
            f"{parent} has {free / 1e9:.0f} GB of room, this needs {2.1 * gigabytes:.0f}; give --folder=DIR"
        )
    with tempfile.TemporaryDirectory(prefix="mllmsubj-bench-", dir=parent) as name:
        root = Path(name)
        write_models(root, _sizes(gigabytes))
        files = sorted((root / "transformer").glob("*.safetensors"))
        size = sum(path.stat().st_size for path in files)
        seconds = {}
        for what, action in (("read", _read), ("copy", _copy)):
            seconds[what] = _timed(root, partial(action, files))
        for path in files:
            path.with_suffix(".copy").unlink()
        usage: list[int] = []
        seconds["import"] = _timed(root, lambda: usage.append(_import(root)))
        written = sum(path.stat().st_size for path in (root / "checkpoint").rglob("*") if path.is_file())
    return {
        "what": "import",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "gigabytes": round(size / 1e9, 3),
        "shards": len(files),
        "written_gigabytes": round(written / 1e9, 3),
        "seconds": {what: round(value, 2) for what, value in seconds.items()},
        "gigabytes_per_second": {what: round(size / 1e9 / value, 3) for what, value in seconds.items()},
        "ratio_to_read": round(seconds["import"] / seconds["read"], 3),
        "ratio_to_copy": round(seconds["import"] / seconds["copy"], 3),
        "import_peak_rss_gib": round(usage[0] / 2**20, 3),
    }


def _sizes(gigabytes: int) -> SubjectConfig:
    """FLUX.1-dev with as many layers as weigh that much, and other parts that weigh nothing."""
    tiny, paper = (Experiment.from_config(load_config(name)).model for name in ("tiny", "paper"))
    layers = {
        name: max(1, round(getattr(paper.transformer, name) * gigabytes / FULL))
        for name in ("num_layers", "num_single_layers")
    }
    fields = asdict(paper.transformer) | layers | {"pooled_projection_dim": tiny.clip.hidden_size}
    return SubjectConfig(**vars(tiny) | {"transformer": type(paper.transformer)(**fields)})


def write_models(root: Path, sizes: SubjectConfig, shard: int = SHARD) -> None:
    """Folders as diffusers and transformers save these models, of random numbers in bfloat16, tokenizers included."""
    expected = SubjectModel(sizes, Compute()).abstract_params()
    levels = len(sizes.vae.block_out_channels)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    for part, name, table, said in (
        ("mllm", "mllm", internvl.table, {"model_type": "internvl"}),
        ("transformer", "transformer", flux.table, {"_class_name": "FluxTransformer2DModel"}),
        ("vae", "vae", vae.table, {**blocks, "_class_name": "AutoencoderKL", "act_fn": "silu"}),
        ("clip", "text_encoder", clip.table, {"model_type": "clip_text_model"}),
    ):
        config = getattr(sizes, part)
        raw = asdict(config) | said
        if part == "vae":
            raw |= {"use_quant_conv": False, "use_post_quant_conv": False}
        if part == "mllm":
            raw = {f"{key}_config" if isinstance(value, dict) else key: value for key, value in raw.items()}
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(raw, indent=2))
        _write_shards(root / name, _source_shapes(table(config), expected[part]), shard)
    shutil.copytree(TINY / "clip_tokenizer", root / "tokenizer")
    shutil.copytree(TINY / "tokenizer", root / "mllm", dirs_exist_ok=True)


def _source_shapes(table: Table, expected: Params) -> dict[str, tuple[int, ...]]:
    """Tensor -> its shape in the source, which the table's layouts are undone for."""
    leaves, shapes = flatten(expected), {}
    for entry in table:
        shape = list(leaves[entry.target].shape)
        if entry.index is not None:
            del shape[entry.axis]
        order = {"same": range(len(shape)), "linear": (1, 0), "conv": (3, 2, 0, 1)}[entry.layout]
        shapes[entry.source] = tuple(shape[axis] for axis in order)
    return shapes


def _write_shards(folder: Path, shapes: Mapping[str, tuple[int, ...]], shard: int) -> None:
    """Safetensors of bfloat16, in files of at most `shard` bytes, with the index that several have."""
    files: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if files[-1] and size + 2 * prod(shape) > shard:
            files.append({})
            size = 0
        files[-1][name] = shape
        size += 2 * prod(shape)
    where: dict[str, str] = {}
    for number, tensors in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors" if len(files) > 1 else "model.safetensors"
        _write_file(folder / file, tensors)
        where |= dict.fromkeys(tensors, file)
    if len(files) > 1:
        total = sum(2 * prod(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """One file, written without ever holding a tensor."""
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (at, at + 2 * prod(shape))}
        at += 2 * prod(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = np.random.default_rng(0).standard_normal(NUMBERS, np.float32).astype(ml_dtypes.bfloat16)
    block = numbers.view(np.uint8).data
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for i, shape in enumerate(shapes.values()):
            left, start = 2 * prod(shape), 2 * (i * 7919 % (NUMBERS // 2))
            while left:
                part = block[start : start + left]
                left, start = left - file.write(part), 0


def _timed(root: Path, action: Callable[[], object]) -> float:
    """Seconds of an action that finds nothing in the page cache and whose writes must reach the disk."""
    os.sync()
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    action()
    os.sync()
    return time.perf_counter() - start


def _read(files: list[Path]) -> None:
    for path in tqdm(files, desc="read", disable=None, leave=False):
        with safe_open(path, framework="numpy") as handle:
            for name in handle.keys():  # noqa: SIM118
                handle.get_tensor(name).view(np.uint8).max()  # mapped files are read when they are looked at


def _copy(files: list[Path]) -> None:
    for path in tqdm(files, desc="copy", disable=None, leave=False):
        shutil.copyfile(path, path.with_suffix(".copy"))


def _import(root: Path) -> int:
    """Imports in a process of its own; returns its peak memory in KiB."""
    flags = {"mllm": "mllm", "transformer": "transformer", "vae": "vae", "workdir": "checkpoint"}
    command = [sys.executable, "-c", IMPORT, "--config=tiny"]
    command += [f"--{flag}={root / name}" for flag, name in flags.items()]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise UserError("the import failed; what it said is above")
    return int(process.stdout.split()[-1])
