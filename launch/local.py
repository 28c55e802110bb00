"""Runs several processes of one command on this machine as one distributed run, to simulate several hosts.

    python launch/local.py --processes=2 [--devices=4] -- mllmsubj train --config=tiny --workdir=DIR

Each line of output begins with the number of its process. SIGTERM and SIGINT are sent to all processes, and a second
signal kills them. If one fails, the others are killed after some seconds; the exit code is that of the first failure.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TextIO

SECONDS_TO_END = 10.0
"""Grace period of the others when one has failed: a process that waits for it in a collective never ends."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code, 128 + n for signal n as a shell does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices", type=int, help="simulated CPU devices of each process (default: as JAX finds)")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND")
    arguments = parser.parse_args(argv)
    if arguments.processes < 1 or (arguments.devices or 1) < 1:
        parser.error("--processes and --devices must be at least 1")
    started: list[subprocess.Popen] = []
    told: list[int] = []

    def forward(number: int, _: object) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if told else number)
        told.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    address = f"localhost:{free_port()}"
    try:
        for index in range(arguments.processes):
            env = environment(address, arguments.processes, index, arguments.devices)
            started.append(start(arguments.command, env))
    except OSError as error:
        parser.error(f"cannot start {arguments.command[0]!r}: {error.strerror}")
    pipes = [(i, *pipe) for i, p in enumerate(started) for pipe in ((p.stdout, sys.stdout), (p.stderr, sys.stderr))]
    readers = [threading.Thread(target=copy, args=pipe) for pipe in pipes]
    for reader in readers:
        reader.start()
    code = wait(started)
    for reader in readers:
        reader.join()
    return 128 - code if code < 0 else code


def environment(address: str, processes: int, index: int, devices: int | None) -> dict[str, str]:
    """Returns the environment that identifies a process of the run; see mllmsubj/parallel/multihost.py."""
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    env |= {"JAX_PROCESS_ID": str(index), "PYTHONUNBUFFERED": "1"}
    if devices:
        # XLA uses the last of several such flags.
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    return env


def start(command: list[str], env: dict[str, str]) -> subprocess.Popen:
    """Starts a process in its own session, so that Ctrl-C in a terminal reaches it once, through `forward`."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait(processes: list[subprocess.Popen]) -> int:
    """Waits until all processes have ended; returns the code of the first that failed, or 0."""
    code, deadline = 0, float("inf")
    while None in (codes := [process.poll() for process in processes]):
        failed = [each for each in codes if each]
        if failed and not code:
            code, deadline = failed[0], time.monotonic() + SECONDS_TO_END
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    return code or next((process.returncode for process in processes if process.returncode), 0)


def copy(index: int, source: TextIO, target: TextIO) -> None:
    """Copies lines as they arrive, each with its process's number."""
    for line in source:
        target.write(f"{index}| {line}")
        target.flush()


def free_port() -> int:
    """Returns a port that no process uses at this moment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
