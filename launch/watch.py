"""Keeps a command running on a slice that may be preempted: polls the state, acts on it, and repeats.

The only memory between two polls is the number of consecutive failures, so that a watch can be stopped and started
again at any time.
"""

import re
import sys
import time
from argparse import Namespace
from collections.abc import Sequence

import tpu_commands as tpu
from commands import Mistake, run, started
from slices import find_slice

ABSENT = "NOT_FOUND"
UNKNOWN = "UNKNOWN"
PENDING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
PREEMPTED = ("SUSPENDED", "PREEMPTED", "FAILED")
STOPPED = 143
"""Exit code of a command that has saved after SIGTERM and is to be restarted; see mllmsubj/cli/train.py."""
PATIENCE = 5
"""Number of consecutive failures before watch gives up."""


def watch(flags: Namespace, command: Sequence[str]) -> int:
    """Polls until the command has ended on all workers; returns its exit code, or that of repeated failures."""
    failures, code, reached = 0, 0, False
    while failures < PATIENCE:
        state = poll_state(flags)
        if state == "ACTIVE":
            done, code = poll_workers(flags, command)
            if done:
                return code
            failures = failures + 1 if code else 0
        elif state in (ABSENT, *PREEMPTED):
            # A request that fails repeatedly, or cannot be made, requires the user to read the reason.
            code = request_again(flags, state) or int(state == "FAILED")
            failures += bool(code)
        elif state == UNKNOWN and not reached:
            return 1
        reached = True
        time.sleep(flags.interval)
    say(f"gave up after {PATIENCE} failures in a row")
    return code


def poll_workers(flags: Namespace, command: Sequence[str]) -> tuple[bool, int]:
    """Polls the workers and restarts the command if necessary.

    Returns whether the watch is over, and the exit code of the command or of what was run.
    """
    answer = started(tpu.status(flags), capture=True)
    if answer.returncode:
        say(f"no answer from the workers: {last_line(answer.stderr)}")
        return False, answer.returncode
    found = re.findall(r"^mllmsubj: (none|running|killed|exited \d+)\s*$", answer.stdout, re.MULTILINE)
    say("workers: " + (", ".join(f"{found.count(each)} {each}" for each in sorted(set(found))) or "new"))
    if "running" in found:
        return False, 0
    if found and set(found) == {"exited 0"}:
        return True, 0
    failed = {int(each.split()[1]) for each in found if each.startswith("exited")} - {0, STOPPED}
    # A worker that restarted makes the others fail, so their exit codes may not be the command's own.
    if failed and "killed" not in found and is_active(flags):
        return True, min(failed)
    ready = len(found) == find_slice(flags.accelerator_type).hosts and "none" not in found
    return False, run([*([] if ready else tpu.setup(flags)), tpu.start(flags, command)])


def is_active(flags: Namespace) -> bool:
    """Returns whether the slice still exists; during a preemption the command may fail in any way."""
    time.sleep(flags.interval)
    return poll_state(flags) == "ACTIVE"


def request_again(flags: Namespace, state: str) -> int:
    """Requests the slice again, after deleting the remains of the last one; returns the exit code."""
    return run([*([] if state == ABSENT else [tpu.delete(flags)]), tpu.create(flags)])


def wait(flags: Namespace) -> None:
    """Waits until the slice is ready; raises Mistake if it will not be."""
    while (state := poll_state(flags)) != "ACTIVE":
        if state not in PENDING:
            raise Mistake(f"{flags.name} is {state}; if it is there, delete it, and create it anew")
        time.sleep(flags.interval)


def poll_state(flags: Namespace) -> str:
    """Returns the state of the request: one of Google's, ABSENT, or UNKNOWN if gcloud fails otherwise."""
    answer = started(tpu.describe(flags), capture=True)
    state = answer.stdout.strip()
    if answer.returncode:
        state = ABSENT if ABSENT in answer.stderr else UNKNOWN
    say(f"{flags.name}: {state}" + (f": {last_line(answer.stderr)}" if state == UNKNOWN else ""))
    return state


def last_line(text: str) -> str:
    """Returns the last line of a program's output."""
    return (text.strip().splitlines() or ["no output"])[-1]


def say(text: str) -> None:
    """Prints a message with the time to stderr."""
    print(f"launch: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
