"""Eight simulated devices, warnings as errors (pyproject.toml), shapes checked by jaxtyping (pyproject.toml)."""

import ctypes
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.environment import MIN_CACHED_SECONDS, ROOT, THREADS, xla_flags

SHARED = os.environ.setdefault("MLLMSUBJ_TEST_SHARED", tempfile.mkdtemp(prefix="mllmsubj-tests-"))
"""A folder for what all workers and processes of one run of the tests share; see `tests.environment.shared`."""
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=8)}"
os.environ.setdefault("NPROC", THREADS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", MIN_CACHED_SECONDS)


def pytest_unconfigure(config):
    """Deletes the shared folder, in the process that started the workers."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(SHARED, ignore_errors=True)


LONG = (
    *(
        "app/test_train.py",
        "train/test_hosts.py",
        "train/test_resume.py",
        "train/test_cache.py",
        "pretrain/test_dla.py",
    ),
    *("app/test_round_trip.py", "app/test_pipeline.py", "models/test_subject.py", "pretrain/test_parts.py"),
    *("train/test_step.py", "diffusion/test_sampler.py", "test_importing.py", "test_turns.py", "app/test_cli.py"),
    *(
        "pretrain/test_dit.py",
        "aot/test_report.py",
        "app/test_import.py",
        "models/test_dla.py",
        "pretrain/test_shipped.py",
    ),
    *("convert/test_lora.py", "pretrain/test_probe.py", "train/test_checkpoints.py", "app/test_evaluate.py"),
    *("evals/test_loss.py", "models/test_mllm.py", "test_weights.py", "test_notebooks.py", "evals/test_samples.py"),
)
"""Files that take over ten seconds, the longest first."""


def pytest_collection_finish():
    """What all tests share is not searched for garbage, and the rest is not searched at every 700th new object."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items):
    """All other files come first, so that most breaks show within a minute or two; the long ones then end together."""
    places = {str(ROOT / "tests" / name): place for place, name in enumerate(LONG, 1)}
    items.sort(key=lambda item: places.get(str(item.path), 0))


MOST_MEMORY = 2**30
"""Bytes that a process may hold when a module's tests are done; beyond that its compiled programs are freed."""


@pytest.fixture(scope="module", autouse=True)
def _free_compiled_programs():
    """JAX keeps every program that was ever called, some two megabytes each, and tests call thousands."""
    yield
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    if "jax" in sys.modules and pages * os.sysconf("SC_PAGE_SIZE") > MOST_MEMORY:
        sys.modules["jax"].clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else the C library keeps what was freed
