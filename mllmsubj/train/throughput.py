"""How fast a run is: measured between log points, with pauses left out and without waiting for the device."""

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
    """What a run has spent so far, over all its restarts; saved with its checkpoints."""

    seconds: float = 0.0
    """In training, pauses left out."""
    steps: int = 0
    paused: float = 0.0
    """Seconds in evaluations, checkpoints and the like."""


class Throughput:
    """Counts steps and the time they take; `report` gives the figures since the report before."""

    def __init__(
        self,
        clock: Timer | None = None,
        devices: Sequence[jax.Device] | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` is the one that the checkpoint holds; `devices` are all that train (by default all there are)."""
        self._devices = list(devices or jax.devices())
        self._now = now
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="throughput")
        self._began = now()
        self._before = clock or Timer()
        self._pause: float | None = None
        self.pending: PyTree = None
        """What the last step returned; its arrays may still be on their way."""
        self._reset()

    def step(self, examples: int, flops: int, pending: PyTree = None) -> None:
        """One more step is on its way: `examples` over all devices, `flops` that its programs must spend on them.

        `pending`: what the step returned and no later one donates; it is waited for where the device has to be idle.
        """
        self.pending = pending
        self._steps += 1
        self._examples += examples
        self._flops += flops

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for the next batch; counts from when the device has finished the last step.

        The host runs ahead of the device; that it waits for input is no loss as long as the device is busy.
        """
        entered = self._now()
        idle = self._watch.submit(self._when_ready, self.pending)
        yield
        left = self._now()
        if idle.done():
            self._waited += max(0.0, left - max(entered, idle.result()))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is not training: compilation, evaluation, waits for a checkpoint.

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
        """Everything so far, the steps since the last report included; a checkpoint asks for it amid a pause."""
        now, before = self._now(), self._before
        paused = self._paused + (now - self._pause if self._pause is not None else 0.0)
        seconds = now - self._start - paused
        return Timer(before.seconds + seconds, before.steps + self._steps, before.paused + paused)

    def report(self) -> dict[str, float]:
        """Figures since the last report, named as clu does where it has a name; waits for the last step first.

        `mfu` (share of the chips' bfloat16 peak) is missing where the peak is not known, as on CPUs. Without a
        step there is nothing to report. Raises what the device raises.
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
    """The fullest of this process's devices at its peak, GiB; where the backend does not say, the process's own."""
    stats = [device.memory_stats() for device in devices if device.process_index == jax.process_index()]
    peaks = [one["peak_bytes_in_use"] for one in stats if one and "peak_bytes_in_use" in one]
    if peaks:
        return {"device_memory_peak_gib": max(peaks) / GIB}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes there, KiB elsewhere
    return {"host_memory_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
