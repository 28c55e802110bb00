"""Platform that programs are traced for: this machine's, or another one that they are only compiled for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_compiling_for: ContextVar[str | None] = ContextVar("compiling_for", default=None)


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu"; programs whose tracing depends on the platform call this."""
    return _compiling_for.get() or jax.default_backend()


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Sets the platform that programs are traced for inside the context; this machine need not have it."""
    token = _compiling_for.set(platform)
    try:
        yield
    finally:
        _compiling_for.reset(token)


def compiler_options() -> dict[str, str] | None:
    """Returns XLA options for programs whose parameters are sharded, or None off TPUs.

    By default XLA splits each product with a sharded kernel into one product per chip, to overlap it with the
    kernel's transfer; these do not fill a matrix unit. Gathering kernels first takes half the time by the compiler's
    estimate (FLUX with adapters, 32 chips of v5p).
    """
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"} if platform() == "tpu" else None


def loops_overlap() -> bool:
    """Returns whether collectives of independent loops can be mismatched, as on CPUs of several processes.

    XLA may start such a loop while another still runs, in any order, and gloo matches messages by order alone ("Is
    there a distributed collective mismatch in your code?"). Collectives outside of loops keep their order.
    """
    return platform() == "cpu" and jax.process_count() > 1
