import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from mllmsubj.train.status import Status
from mllmsubj.train.throughput import Timer

FIGURES = {
    "step_seconds": 0.25,
    "examples_per_sec": 3.14,
    "tflops_per_sec_per_device": 45.2,
    "mfu": 0.553,
    "input_wait_share": 0.003,
}


def test_status_line():
    out = io.StringIO()
    with Status((25_000, 10_000), 0, out) as status:
        status.update(1200, Timer(300.0, 1200), 0.41234, FIGURES)
        status.update(25_000, Timer(), 12.0, {"step_seconds": 0.25})
        status.update(25_001, Timer(), 12.0)
    assert out.getvalue().splitlines() == [
        "stage 1/2 · step 1,200/35,000 · loss 0.412 · 3.14 examples/s · 45.2 TFLOP/s (55 % MFU) · input wait 0.3 % · "
        "ETA 2:20:50",
        "stage 1/2 · step 25,000/35,000 · loss 12 · ETA 41:40",
        "stage 2/2 · step 25,001/35,000 · loss 12 · ETA 41:39",
    ]


def test_seconds_left_resumed():
    """After a restart, the time left is estimated from the earlier run's timer."""
    out = io.StringIO()
    status = Status((100, 100), 0, out)
    assert status.seconds_left(0, Timer()) is None
    status.update(0, Timer())
    assert out.getvalue() == "stage 1/2 · step 0/200\n"
    earlier = Timer(seconds=100.0, steps=50, paused=10.0)
    assert status.seconds_left(50, earlier) == pytest.approx(150 * 2.0 * 1.1)
    status.update(60, earlier, figures={"step_seconds": 1.0})
    assert status.seconds_left(60, earlier) == pytest.approx(140 * 1.0 * 1.1)
    assert status.seconds_left(250, earlier) == 0


def test_status_other_process():
    """Processes other than the first print nothing."""
    out = io.StringIO()
    with Status((1, 1), 1, out) as status:
        status.update(1, Timer(), 0.5, FIGURES)
    assert out.getvalue() == ""


PROGRAM = """
import logging, sys
HANDLER
from mllmsubj.train.throughput import Timer
from mllmsubj.train.status import Status
log = logging.getLogger("mllmsubj")
with Status((100, 100), 0) as status:
    status.update(1, Timer(1.0, 1), 0.5)
    log.warning("something happened")
    status.update(2, Timer(2.0, 2), 0.25)
log.warning("after")
"""


def screen(output: str) -> list[str]:
    """Returns the rows that a terminal shows after the output."""
    rows, column = [""], 0
    for token in output.replace("\x1b[K", "\x00"):
        if token == "\n":
            rows.append("")
            column = 0
        elif token == "\r":
            column = 0
        elif token == "\x00":
            rows[-1] = rows[-1][:column]
        else:
            rows[-1] = rows[-1][:column] + token + rows[-1][column + 1 :]
            column += 1
    return [row.rstrip() for row in rows if row.strip()]


def on_terminal(program: str, columns: int) -> str:
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", program], stderr=terminal, stdout=terminal)
    os.close(terminal)
    chunks = []
    while True:
        try:
            chunk = os.read(main, 4096)
        except OSError:  # on Linux, the process has closed the terminal
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(main)
    assert process.wait() == 0
    return b"".join(chunks).decode()


@pytest.mark.parametrize(
    "handler", ["", "logging.basicConfig(format='%(message)s')"], ids=["no handler", "root handler"]
)
def test_status_terminal(handler):
    """The status line is updated in place, and log messages are printed above it."""
    output = on_terminal(PROGRAM.replace("HANDLER", handler), columns=100)
    rows = screen(output)
    assert rows == ["something happened", "stage 1/2 · step 2/200 · loss 0.25 · ETA 03:18", "after"]
    assert "step 1/200" in output


def test_status_narrow_terminal():
    rows = screen(on_terminal(PROGRAM.replace("HANDLER", ""), columns=30))
    assert rows[1].startswith("stage 1/2 · step 2/200")
    assert len(rows[1]) < 30
