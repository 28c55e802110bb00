"""Keeps a command running on a slice that may be taken away: looks, decides, looks again.

Nothing is remembered from one look to the next but how often something failed in a row, so that a watch can be
stopped and started again at any time.
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
COMING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
LOST = ("SUSPENDED", "PREEMPTED", "FAILED")
STOPPED = 143
"""What a command leaves with that has saved after SIGTERM: to be started again. See mllmsubj/cli/train.py."""
PATIENCE = 5
"""Failures in a row of one thing, before watch gives up."""


def watch(flags: Namespace, command: Sequence[str]) -> int:
    """Until the command has ended on all workers; returns its exit code, or that of what keeps failing."""
    failures, code, reached = 0, 0, False
    while failures < PATIENCE:
        state = look(flags)
        if state == "ACTIVE":
            done, code = attend(flags, command)
            if done:
                return code
            failures = failures + 1 if code else 0
        elif state in (ABSENT, *LOST):
            # A request that fails again and again, or cannot even be made, needs somebody who reads why.
            code = renew(flags, state) or int(state == "FAILED")
            failures += bool(code)
        elif state == UNKNOWN and not reached:
            return 1
        reached = True
        time.sleep(flags.interval)
    say(f"gave up after {PATIENCE} failures in a row")
    return code


def attend(flags: Namespace, command: Sequence[str]) -> tuple[bool, int]:
    """One look at the workers: whether all is over, and the exit code of the command or of what was tried."""
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
    # What a worker that restarted does to the others says nothing of the command.
    if failed and "killed" not in found and still_there(flags):
        return True, min(failed)
    ready = len(found) == find_slice(flags.accelerator_type).hosts and "none" not in found
    return False, run([*([] if ready else tpu.setup(flags)), tpu.start(flags, command)])


def still_there(flags: Namespace) -> bool:
    """Whether a failure is the command's own: a slice that is being taken away can break it in any way."""
    time.sleep(flags.interval)
    return look(flags) == "ACTIVE"


def renew(flags: Namespace, state: str) -> int:
    """Asks for the slice, after what is left of the last one is gone; returns the exit code."""
    return run([*([] if state == ABSENT else [tpu.delete(flags)]), tpu.create(flags)])


def wait(flags: Namespace) -> None:
    """Until the slice is there; raises Mistake if it will not come."""
    while (state := look(flags)) != "ACTIVE":
        if state not in COMING:
            raise Mistake(f"{flags.name} is {state}; if it is there, delete it, and create it anew")
        time.sleep(flags.interval)


def look(flags: Namespace) -> str:
    """The state of the request, one of Google's, ABSENT, or UNKNOWN when gcloud cannot tell."""
    answer = started(tpu.describe(flags), capture=True)
    state = answer.stdout.strip()
    if answer.returncode:
        state = ABSENT if ABSENT in answer.stderr else UNKNOWN
    say(f"{flags.name}: {state}" + (f": {last_line(answer.stderr)}" if state == UNKNOWN else ""))
    return state


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def say(text: str) -> None:
    print(f"launch: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
