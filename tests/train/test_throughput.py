import time
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest

from mllmsubj.parallel.chips import CHIPS, find_chip
from mllmsubj.train.profile import Profiler
from mllmsubj.train.throughput import Throughput, Timer
from tests.train.test_writers import config


class Now:
    """A clock that tests advance."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def spend(self, seconds: float) -> None:
        self.seconds += seconds


def test_throughput_report():
    now = Now()
    meter = Throughput(devices=jax.devices()[:2], now=now)
    for _ in range(4):
        now.spend(0.5)
        meter.step(examples=8, flops=3 * 10**12)
    with meter.paused():
        now.spend(100.0)
    figures = meter.report()
    assert figures.pop("host_memory_peak_gib") > 0.05
    assert figures == {
        "steps_per_sec": 2.0,
        "step_seconds": 0.5,
        "examples_per_sec": 16.0,
        "examples_per_sec_per_device": 8.0,
        "tflops_per_sec_per_device": 3.0,
        "input_wait_share": 0.0,
        "uptime": 102.0,
    }
    assert meter.report() == {}
    now.spend(1.0)
    meter.step(examples=8, flops=0)
    assert meter.report()["steps_per_sec"] == 1.0


def test_throughput_mfu_and_memory():
    now = Now()
    h100 = Mock(spec=jax.Device, device_kind="NVIDIA H100 80GB HBM3", process_index=0)
    h100.memory_stats.return_value = {"peak_bytes_in_use": 3 * 2**30, "bytes_in_use": 1}
    meter = Throughput(devices=[h100, h100], now=now)
    now.spend(2.0)
    meter.step(examples=8, flops=2 * 989 * 10**12)
    figures = meter.report()
    assert figures["mfu"] == pytest.approx(0.5)
    assert figures["device_memory_peak_gib"] == 3.0
    assert "host_memory_peak_gib" not in figures


def test_throughput_resumed_timer():
    """The timer of an earlier run is continued."""
    now = Now()
    meter = Throughput(Timer(seconds=50.0, steps=100, paused=5.0), now=now)
    for seconds in (1.0, 2.0):
        now.spend(seconds)
        meter.step(examples=1, flops=0)
    with meter.paused():
        now.spend(4.0)
        assert meter.clock == Timer(53.0, 102, 9.0)
    assert meter.clock == Timer(53.0, 102, 9.0)
    meter.report()
    now.spend(1.0)
    assert meter.clock == Timer(54.0, 102, 9.0)


@jax.jit
def busy(x):
    """Takes a few tenths of a second on a CPU."""
    return jax.lax.fori_loop(0, 60, lambda _, y: y @ x / 1000.0, x)


def test_throughput_input_wait():
    """Waiting for input counts only while the device is idle."""
    x = jnp.ones((1000, 1000))
    busy(x).block_until_ready()
    began = time.perf_counter()
    busy(x).block_until_ready()
    takes = time.perf_counter() - began

    meter = Throughput()
    meter.step(1, 0, busy(x))
    with meter.waiting():
        time.sleep(takes / 20)
    assert meter.report()["input_wait_share"] == 0.0

    meter.step(1, 0, busy(x))
    with meter.waiting():
        meter.pending.block_until_ready()
        time.sleep(0.5)
    figures = meter.report()
    assert figures["input_wait_share"] * figures["step_seconds"] == pytest.approx(0.5, abs=0.2)

    with meter.waiting():
        time.sleep(0.2)
    meter.step(examples=1, flops=0)
    assert meter.report()["input_wait_share"] > 0.9


def test_throughput_nonblocking():
    """Counting a step does not wait for the device; a pause does."""
    x = jnp.ones((1000, 1000))
    busy(x).block_until_ready()
    meter = Throughput()
    meter.step(1, 0, busy(x))
    with meter.waiting():
        pass
    assert not meter.pending.is_ready()
    with meter.paused():
        assert meter.pending.is_ready()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
    ],
)
def test_find_chip(kind, name):
    assert find_chip(kind).name == name


def test_find_chip_unknown():
    assert find_chip("cpu") is None
    assert find_chip("NVIDIA H100 PCIe") is None
    assert {chip.name: chip.device_flops for chip in CHIPS}["tpu7x"] == 2307e12 / 2


def test_profiler_trace(tmp_path):
    x = jnp.ones((8, 8))
    with Profiler(config(profile_start=2, profile_steps=2), tmp_path, 0) as profiler:
        for done in range(6):
            profiler.before_step(done, x)
            assert profiler.running == (done in (2, 3))
            x = busy(x)
    (trace,) = tmp_path.glob("profile/**/*.xplane.pb")
    assert b"busy" in trace.read_bytes()


def test_profiler_early_end(tmp_path):
    """A run that ends while it is profiled leaves a trace."""
    with Profiler(config(profile_start=0, profile_steps=10), tmp_path, 0) as profiler:
        profiler.before_step(0)
        busy(jnp.ones((8, 8))).block_until_ready()
    assert len(list(tmp_path.glob("profile/**/*.xplane.pb"))) == 1


@pytest.mark.parametrize(("count", "process"), [(0, 0), (2, 1)])
def test_profiler_off(tmp_path, count, process):
    with Profiler(config(profile_start=0, profile_steps=count), tmp_path, process) as profiler:
        profiler.before_step(0)
    assert list(tmp_path.iterdir()) == []
