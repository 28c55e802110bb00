"""Runs a command on all workers of a TPU VM slice, which it creates, sets up, restarts and deletes through gcloud.

    FLAGS="--name=paper --zone=us-east5-a --accelerator-type=v5p-64 --spot --env-file=secrets.env"
    python launch/tpu_vm.py watch $FLAGS -- mllmsubj train --config=paper --workdir=DIR

`watch` runs all steps: it creates the slice if there is none, waits for it, sets it up, starts the command, and after a
preemption deletes the slice and repeats, until the command has ended on all workers; its exit code is then that of the
command. When stopped and started again, it continues from the state of the slice. The single steps are `create`,
`setup`, `run`, `status`, `logs`, `stop`, `delete`.

Workers get the commit --revision of this checkout, in which the command runs; it continues if the connection breaks.
--env-file contains NAME=VALUE lines, taken literally, for secrets: it is copied, and no value is ever on a command
line. --dry-run prints the commands instead, one per line, for a shell.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import tpu_commands as tpu
import watch
from commands import Command, Mistake, front, parsers, run, show, split_command, started
from slices import find_slice

STEPS = {
    "create": "request the slice",
    "setup": "wait until it is there; code, secrets and packages to all workers",
    "run": "start a command on all workers: … run … -- COMMAND",
    "status": "the request's state and what each worker does",
    "logs": "follow one worker's log to the end of its command",
    "stop": "SIGTERM to the command on all workers",
    "watch": "all steps, repeated after each preemption: … watch … -- COMMAND",
    "delete": "the slice and all that is on it",
}


def main(argv: list[str]) -> int:
    """Runs one step; returns the exit code of the command that failed, or 0."""
    argv, command = split_command(argv)
    flags = parser().parse_args(argv)
    if (flags.step in ("run", "watch")) != bool(command):
        raise Mistake(f"{flags.step} takes {'a' if not command else 'no'} command after --, such as mllmsubj train …")
    check(flags)
    if flags.dry_run:
        return show(planned(flags, command))
    if flags.step in ("setup", "watch"):
        flags.revision = commit(flags.revision)
        warn_of_changes()
    if flags.step == "watch":
        return watch.watch(flags, command)
    if flags.step == "setup":
        watch.wait(flags)
    return run(planned(flags, command))


def planned(flags: argparse.Namespace, command: tuple[str, ...]) -> list[Command]:
    """Returns the commands of a step; those of `watch` without a preemption."""
    match flags.step:
        case "create":
            return [tpu.create(flags)]
        case "setup":
            waits = [tpu.describe(flags, "until its state is ACTIVE")] if flags.dry_run else []
            return [*waits, *tpu.setup(flags)]
        case "run":
            return [tpu.start(flags, command)]
        case "status":
            return [tpu.describe(flags), tpu.status(flags)]
        case "logs":
            return [tpu.logs(flags)]
        case "stop":
            return [tpu.stop(flags)]
        case "delete":
            return [tpu.delete(flags)]
    return [
        tpu.create(flags),
        tpu.describe(flags, "until its state is ACTIVE"),
        *tpu.setup(flags),
        tpu.start(flags, command),
        tpu.status(flags, "until all have exited"),
        tpu.delete(flags, "after a preemption; then all again"),
    ]


def parser() -> argparse.ArgumentParser:
    """Returns the parser; flags have gcloud's names."""
    made, each = parsers(__doc__, STEPS)
    for step, flags in each.items():
        flags.add_argument("--name", required=True, help="of the queued resource and of its TPU VM")
        flags.add_argument("--zone", required=True)
        flags.add_argument("--project", help="default: gcloud's")
        flags.add_argument("--internal-ip", action="store_true", help="workers without an address on the internet")
        flags.add_argument("--dry-run", action="store_true", help="print the commands, run none")
        if step in ("create", "watch"):
            flags.add_argument("--accelerator-type", required=True, help="such as v5p-64 or v5p:2x4x4")
            flags.add_argument("--runtime-version", help="default: the generation's for JAX")
            flags.add_argument("--spot", action="store_true")
            flags.add_argument("--reserved", action="store_true")
            flags.add_argument("--network")
            flags.add_argument("--subnetwork")
            flags.add_argument("--service-account", help="of the workers, for their access to buckets")
        if step in ("setup", "watch"):
            flags.add_argument("--revision", default="HEAD", help="commit of this checkout that runs (default: HEAD)")
            flags.add_argument("--env-file", type=Path, help="NAME=VALUE lines, such as WANDB_API_KEY=…")
            flags.add_argument("--interval", type=float, default=30.0, help="seconds between polls (default: 30)")
        if step == "logs":
            flags.add_argument("--worker", type=int, default=0, help="its number (default: 0)")
    return made


def check(flags: argparse.Namespace) -> None:
    """Raises Mistake for errors in the flags that would otherwise appear later, or never."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", flags.name):
        raise Mistake(f"name {flags.name!r} must be lower-case letters, digits and hyphens, beginning with a letter")
    if "accelerator_type" in flags:
        find_slice(flags.accelerator_type)
    if getattr(flags, "env_file", None):
        flags.env_file = flags.env_file.expanduser()
        check_env_file(flags.env_file)


def check_env_file(path: Path) -> None:
    """Raises Mistake for a malformed file; the message never contains text of the file."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"cannot read --env-file {path}: {getattr(error, 'strerror', 'not text')}") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#") and not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", line):
            raise Mistake(f"line {number} of --env-file {path} is not NAME=VALUE")


def commit(revision: str) -> str:
    """Returns the commit of a revision, so that a watch starts the same code after every preemption."""
    found = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if found.returncode:
        raise Mistake(f"unknown --revision {revision!r}; give a commit, tag or branch of this checkout")
    return found.stdout.strip()


def warn_of_changes() -> None:
    """Prints changes that are not committed: they would be missing on the workers."""
    changed = git("status", "--porcelain").stdout.splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:3])
        more = ", …" if len(changed) > 3 else ""
        print(f"launch: not committed, so not on the workers: {names}{more}", file=sys.stderr)


def git(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs git in this checkout and captures its output."""
    return started(Command(("git", "-C", str(tpu.HERE.parent), *words)), capture=True)


if __name__ == "__main__":
    sys.exit(front(main))
