"""Settings of the processes that run tests, and of those that tests start. Nothing here imports JAX."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIPES = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
"""Of a process whose output a test reads."""
OPTIMIZED = os.environ.get("MLLMSUBJ_TEST_OPTIMIZED") == "1"
"""Whether programs are compiled as users compile them (`make test-all`); otherwise as fast as XLA can compile them."""
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
"""A fifth of the default's compile time and half of its memory, for programs that run for milliseconds."""
THREADS = "16"
"""XLA's thread pool (environment variable NPROC). Every simulated device holds a thread while it waits in a collective;
with as many threads as two cores give, eight devices wait for each other until XLA aborts."""
MIN_CACHED_SECONDS = "0.2"
"""Programs that took longer to compile are kept in the cache that all workers and processes share."""


def shared() -> Path:
    """A folder that all workers and processes of one run of the tests share; it is deleted at the end."""
    return Path(os.environ["MLLMSUBJ_TEST_SHARED"])


def xla_flags(devices: int = 1) -> str:
    """XLA_FLAGS for a process with this many simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return flags if OPTIMIZED else f"{flags} {FAST_COMPILATION}"


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """The environment of a process that a test starts: so many devices, and the shared compilation cache."""
    return os.environ | {"XLA_FLAGS": xla_flags(devices)} | more
