"""Time to first step: what a start costs until something is learned, and what the compilation cache saved of it."""

import logging
import time
from collections import Counter
from typing import Any

import jax

from mllmsubj.typing import PyTree

log = logging.getLogger("mllmsubj")

HITS, MISSES = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


class StartupTime:
    """Counts from when it is entered until the first step of this process is done."""

    def __enter__(self) -> "StartupTime":
        self._start, self._events = time.perf_counter(), Counter[str]()
        jax.monitoring.register_event_listener(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_listener(self._count)

    def done(self, pending: PyTree) -> dict[str, float]:
        """Waits for what the first step returned; says how long all took, and gives it for `metrics.jsonl`.

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
