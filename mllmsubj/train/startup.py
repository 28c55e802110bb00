"""Time to the first training step, and hits of the compilation cache until then."""

import logging
import time
from collections import Counter
from typing import Any

import jax

from mllmsubj.typing import PyTree

log = logging.getLogger("mllmsubj")

HITS, MISSES = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


class StartupTime:
    """Measures the time from entering the context until the first step of this process is done."""

    def __enter__(self) -> "StartupTime":
        """Starts the clock and the count of cache events."""
        self._start, self._events = time.perf_counter(), Counter[str]()
        jax.monitoring.register_event_listener(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        """Stops counting cache events."""
        jax.monitoring.unregister_event_listener(self._count)

    def done(self, pending: PyTree) -> dict[str, float]:
        """Waits for the output of the first step, and logs and returns the time until then and the cache's counts.

        A start is warm if every program that takes long to compile was found in the cache, else cold.
        """
        jax.block_until_ready(pending)
        seconds, hits, misses = time.perf_counter() - self._start, self._events[HITS], self._events[MISSES]
        kind = "warm" if hits and not misses else "cold"
        found = f"{hits} of {hits + misses} programs were in the compilation cache"
        log.info("first step after %.1f s (%s: %s)", seconds, kind, found)
        return {"first_step_seconds": seconds, "programs_cached": hits, "programs_compiled": misses}

    def _count(self, event: str, **_: Any) -> None:
        self._events[event] += 1
