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
