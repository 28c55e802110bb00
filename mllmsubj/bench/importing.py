"""Import of a FLUX-sized transformer, compared with plain reads and plain copies of the same files."""

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
"""Size of FLUX.1-dev in bfloat16, gigabytes."""
SHARD = 9_980_000_000
"""Size of its largest shard, bytes."""
NUMBERS = 32 << 20
"""Count of random numbers; each tensor repeats them from a different offset."""

IMPORT = r"""
import re, sys
from pathlib import Path
from mllmsubj.cli.main import run
run(["mllmsubj", "import", *sys.argv[1:]])
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""
"""Script that runs the command and prints its peak memory in KiB; the parent could not measure it, since the peak that
the system records for a child starts at the parent's own."""


def run(gigabytes: int, folder: str | None) -> dict[str, Any]:
    """Measures each once, with the files evicted from the page cache, and deletes all files afterwards.

    Raises UserError if the disk lacks room.
    """
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
    """Returns FLUX.1-dev's sizes with as many layers as have that size, and other components of negligible size."""
    tiny, paper = (Experiment.from_config(load_config(name)).model for name in ("tiny", "paper"))
    layers = {
        name: max(1, round(getattr(paper.transformer, name) * gigabytes / FULL))
        for name in ("num_layers", "num_single_layers")
    }
    fields = asdict(paper.transformer) | layers | {"pooled_projection_dim": tiny.clip.hidden_size}
    return SubjectConfig(**vars(tiny) | {"transformer": type(paper.transformer)(**fields)})


def write_models(root: Path, sizes: SubjectConfig, shard: int = SHARD) -> None:
    """Writes folders as diffusers and transformers save these models: random bfloat16 weights, and tokenizers."""
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
    """Returns tensor -> shape in the source, by inverting the table's layouts."""
    leaves, shapes = flatten(expected), {}
    for entry in table:
        shape = list(leaves[entry.target].shape)
        if entry.index is not None:
            del shape[entry.axis]
        order = {"same": range(len(shape)), "linear": (1, 0), "conv": (3, 2, 0, 1)}[entry.layout]
        shapes[entry.source] = tuple(shape[axis] for axis in order)
    return shapes


def _write_shards(folder: Path, shapes: Mapping[str, tuple[int, ...]], shard: int) -> None:
    """Writes bfloat16 safetensors files of at most `shard` bytes, with an index if there are several."""
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
    """Writes one file without a whole tensor in memory."""
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
    """Returns the seconds of an action with a cold page cache, including the time to flush writes to the disk."""
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
                handle.get_tensor(name).view(np.uint8).max()  # memory-mapped files are read on access


def _copy(files: list[Path]) -> None:
    for path in tqdm(files, desc="copy", disable=None, leave=False):
        shutil.copyfile(path, path.with_suffix(".copy"))


def _import(root: Path) -> int:
    """Runs the import in a separate process; returns its peak memory in KiB."""
    flags = {"mllm": "mllm", "transformer": "transformer", "vae": "vae", "workdir": "checkpoint"}
    command = [sys.executable, "-c", IMPORT, "--config=tiny"]
    command += [f"--{flag}={root / name}" for flag, name in flags.items()]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise UserError("the import failed; what it said is above")
    return int(process.stdout.split()[-1])
