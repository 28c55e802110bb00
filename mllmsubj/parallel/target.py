"""The kind of device that programs are traced for: this machine's, or another's that they are only compiled for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax

_compiling_for: ContextVar[str | None] = ContextVar("compiling_for", default=None)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": whoever traces a program one way on one of them asks here."""
    return _compiling_for.get() or jax.default_backend()


@contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """What is traced inside is for devices of that kind, which this machine need not have."""
    token = _compiling_for.set(platform)
    try:
        yield
    finally:
        _compiling_for.reset(token)


def compiler_options() -> dict[str, str] | None:
    """For programs whose parameters are split over chips.

    XLA would cut each product with a split kernel into as many small ones as there are chips, to hide the kernel's
    way over the links; the pieces fill no matrix unit. Gathering whole kernels early takes half the time by the
    compiler's own estimate (FLUX with adapters, 32 chips of v5p).
    """
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"} if platform() == "tpu" else None


def loops_overlap() -> bool:
    """Whether collectives of loops that do not depend on each other get mixed up: on the CPUs of several processes.

    XLA starts such a loop while another still runs, in any order, and gloo matches what arrives by order alone ("Is
    there a distributed collective mismatch in your code?"). Collectives outside of loops keep their order.
    """
    return platform() == "cpu" and jax.process_count() > 1
