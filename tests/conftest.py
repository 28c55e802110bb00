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
