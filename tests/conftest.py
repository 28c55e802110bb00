"""Eight simulated devices, warnings as errors (pyproject.toml), shapes checked by jaxtyping (pyproject.toml)."""

import ctypes
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.environment import MIN_CACHED_SECONDS, ROOT, THREADS, shared, xla_flags

IS_FIRST = "MLLMSUBJ_TEST_SHARED" not in os.environ
"""Whether this process started the run: it makes and deletes the folder that its workers and processes share."""
if IS_FIRST:
    os.environ["MLLMSUBJ_TEST_SHARED"] = tempfile.mkdtemp(prefix="mllmsubj-tests-")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=8)}"
os.environ.setdefault("NPROC", THREADS)
os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # of workers: freed memory is not kept for each of XLA's threads
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", MIN_CACHED_SECONDS)


def pytest_unconfigure():
    if IS_FIRST:
        shutil.rmtree(shared(), ignore_errors=True)


LONG = [
    "cli/test_train.py",
    "train/test_hosts.py",
    "train/test_resume.py",
    "train/test_cache.py",
    "toyworld/pretrain/test_dla.py",
    "cli/test_round_trip.py",
    "inference/test_pipeline.py",
    "models/test_subject.py",
    "toyworld/pretrain/test_parts.py",
    "train/test_step.py",
    "diffusion/test_sampler.py",
    "checkpoints/test_importing.py",
    "inference/test_offload.py",
    "cli/test_generate.py",
    "toyworld/pretrain/test_dit.py",
    "compile/test_report.py",
    "cli/test_import.py",
    "models/test_dla.py",
    "toyworld/pretrain/test_shipped.py",
    "convert/test_lora.py",
    "toyworld/pretrain/test_probe.py",
    "train/test_checkpoints.py",
    "cli/test_evaluate.py",
    "evals/test_loss.py",
    "models/test_mllm.py",
    "checkpoints/test_initial.py",
    "test_notebooks.py",
    "evals/test_samples.py",
    "test_docs.py",
]
"""Files that take over ten seconds, the longest first."""


def pytest_collection_finish():
    """What all tests share is not searched for garbage, and the rest is not searched at every 700th new object."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items):
    """All other files come first, so that most breaks show within a minute or two; the long ones then end together."""
    places = {str(ROOT / "tests" / name): place for place, name in enumerate(LONG, 1)}
    items.sort(key=lambda item: places.get(str(item.path), 0))


GROWTH = 2**29
"""Bytes that a process may grow by before compiled programs are freed."""
_left = [0]
"""Bytes that it held after that was done last."""


def pytest_runtest_teardown():
    """JAX keeps every program that was ever called, some two megabytes each, and tests call thousands."""
    if "jax" in sys.modules and _resident() > _left[0] + GROWTH:
        sys.modules["jax"].clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else the C library keeps what was freed
        _left[0] = _resident()


def _resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
