"""Throughput of a run, measured between log points, without pauses and without waiting for the device."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import jax

from mllmsubj.parallel.chips import GIB, find_chip
from mllmsubj.typing import PyTree


@dataclass(frozen=True)
class Timer:
    """Time and steps of a run so far, over all its restarts; saved with its checkpoints."""

    seconds: float = 0.0
    """Training time without pauses."""
    steps: int = 0
    paused: float = 0.0
    """Seconds in evaluations, checkpoints and other pauses."""


class Throughput:
    """Counts steps and the time they take; `report` returns the figures since the previous report."""

    def __init__(
        self,
        clock: Timer | None = None,
        devices: Sequence[jax.Device] | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Continues from `clock`, the checkpoint's timer; `devices`: all that train, by default `jax.devices()`."""
        self._devices = list(devices or jax.devices())
        self._now = now
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="throughput")
        self._began = now()
        self._before = clock or Timer()
        self._pause: float | None = None
        self.pending: PyTree = None
        """Output of the last step; its arrays may not be computed yet."""
        self._reset()

    def step(self, examples: int, flops: int, pending: PyTree = None) -> None:
        """Counts a step that was started, with its `examples` and required `flops` over all devices.

        `pending`: output of the step that no later one donates, to wait for where the device has to be idle.
        """
        self.pending = pending
        self._steps += 1
        self._examples += examples
        self._flops += flops

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the wait for the next batch, in its body, from when the device has finished the last step.

        The host runs ahead of the device; waiting for input costs no time as long as the device is busy.
        """
        entered = self._now()
        idle = self._watch.submit(self._when_ready, self.pending)
        yield
        left = self._now()
        if idle.done():
            self._waited += max(0.0, left - max(entered, idle.result()))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes its body from the training time: compilation, evaluation, waits for a checkpoint.

        Waits for the last step first, so that its time counts as training.
        """
        jax.block_until_ready(self.pending)
        self._pause = self._now()
        try:
            yield
        finally:
            self._paused += self._now() - self._pause
            self._pause = None

    @property
    def clock(self) -> Timer:
        """Time and steps so far, including those since the last report; may be read during a pause."""
        now, before = self._now(), self._before
        paused = self._paused + (now - self._pause if self._pause is not None else 0.0)
        seconds = now - self._start - paused
        return Timer(before.seconds + seconds, before.steps + self._steps, before.paused + paused)

    def report(self) -> dict[str, float]:
        """Returns figures since the last report, with clu's names where it has any; waits for the last step first.

        `mfu` (fraction of the chips' bfloat16 peak) is missing where the peak is not known, as on CPUs. Without a
        step the result is empty. Raises errors of the device.
        """
        jax.block_until_ready(self.pending)
        if not self._steps:
            return {}
        seconds = max(self._now() - self._start - self._paused, 1e-9)
        per_device = self._flops / seconds / len(self._devices)
        figures = {
            "steps_per_sec": self._steps / seconds,
            "step_seconds": seconds / self._steps,
            "examples_per_sec": self._examples / seconds,
            "examples_per_sec_per_device": self._examples / seconds / len(self._devices),
            "tflops_per_sec_per_device": per_device / 1e12,
            "input_wait_share": min(self._waited / seconds, 1.0),
            "uptime": self._now() - self._began,
        }
        if chip := find_chip(self._devices[0].device_kind):
            figures["mfu"] = per_device / chip.device_flops
        self._before = self.clock
        self._reset()
        return figures | memory(self._devices)

    def _reset(self) -> None:
        self._start = self._now()
        self._steps = self._examples = self._flops = 0
        self._waited = self._paused = 0.0

    def _when_ready(self, pending: PyTree) -> float:
        jax.block_until_ready(pending)
        return self._now()


def memory(devices: Sequence[jax.Device]) -> dict[str, float]:
    """Returns the highest peak memory of this process's devices in GiB, or the process's own if that is unknown."""
    stats = [device.memory_stats() for device in devices if device.process_index == jax.process_index()]
    peaks = [one["peak_bytes_in_use"] for one in stats if one and "peak_bytes_in_use" in one]
    if peaks:
        return {"device_memory_peak_gib": max(peaks) / GIB}
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return {"host_memory_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
