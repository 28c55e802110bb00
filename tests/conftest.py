"""Eight simulated devices, warnings as errors (pyproject.toml), shapes checked by jaxtyping (pyproject.toml)."""

import os

from tests.environment import MIN_CACHED_SECONDS, ROOT, THREADS, xla_flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=8)}"
os.environ.setdefault("NPROC", THREADS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", MIN_CACHED_SECONDS)
