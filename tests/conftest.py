"""Eight simulated devices, warnings as errors (pyproject.toml), shapes checked by jaxtyping (pyproject.toml)."""

import os
import shutil
import tempfile

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
