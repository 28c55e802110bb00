"""Commands of tpu_vm.py, as pure functions of its flags: gcloud for the slice, scripts of this folder for its workers.

On every worker the folder `mllmsubj` in the home contains setup_worker.sh, run_worker.sh and their files.
"""

import shlex
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from commands import Command, forward_flags
from slices import find_slice

HERE = Path(__file__).resolve().parent
FOLDER = "mllmsubj"
RUN = f"{FOLDER}/run_worker.sh"


def gcloud(flags: Namespace, *words: str, note: str = "") -> Command:
    """Returns a gcloud call for the flags' zone and project."""
    return Command(("gcloud", "compute", "tpus", *words, *forward_flags(flags, "zone", "project")), note=note)


def create(flags: Namespace) -> Command:
    """Requests the slice; Google queues the request."""
    part = find_slice(flags.accelerator_type)
    words = [
        f"--node-id={flags.name}",
        f"--accelerator-type={part.accelerator_type}",
        f"--runtime-version={flags.runtime_version or part.generation.runtime_version}",
    ]
    words += ["--internal-ips"] if flags.internal_ip else []
    words += forward_flags(flags, "spot", "reserved", "network", "subnetwork", "service_account")
    return gcloud(flags, "queued-resources", "create", flags.name, *words)


def describe(flags: Namespace, note: str = "") -> Command:
    """Prints the state of the request as one word."""
    return gcloud(flags, "queued-resources", "describe", flags.name, "--format=value(state.state)", note=note)


def delete(flags: Namespace, note: str = "") -> Command:
    """Deletes the request and its machines, without confirmation."""
    return gcloud(flags, "queued-resources", "delete", flags.name, "--force", "--quiet", note=note)


def setup(flags: Namespace) -> list[Command]:
    """Copies the commit `--revision` and the env file to all workers and installs the package there."""
    archive = Path(tempfile.gettempdir()) / f"mllmsubj-{flags.name}.tar.gz"
    files = [HERE / "setup_worker.sh", HERE / "run_worker.sh", archive]
    # The file is created before it is filled, so that no other user can read it: a copy onto a file keeps its mode.
    empty = f" && install -m 600 /dev/null {FOLDER}/variables" if flags.env_file else ""
    pack = ("git", "-C", str(HERE.parent), "archive", "--format=tar.gz", f"--output={archive}", flags.revision)
    secrets = [copy(flags, [flags.env_file], f"{FOLDER}/variables")] if flags.env_file else []
    return [
        Command(pack),
        ssh(flags, f"mkdir -p -m 700 {FOLDER}{empty}"),
        copy(flags, files, f"{FOLDER}/"),
        *secrets,
        ssh(flags, shlex.join(["bash", f"{FOLDER}/setup_worker.sh", archive.name])),
    ]


def start(flags: Namespace, command: Sequence[str]) -> Command:
    """Starts the command on all workers; returns as soon as it runs."""
    return ssh(flags, shlex.join(["bash", RUN, "start", *command]))


def status(flags: Namespace, note: str = "") -> Command:
    """Prints a line for each worker that is set up: `mllmsubj: ` and none, running, killed or exited CODE."""
    return ssh(flags, f"! test -e {RUN} || bash {RUN} status", note=note)


def logs(flags: Namespace) -> Command:
    """Follows one worker's log until its command ends."""
    return ssh(flags, shlex.join(["bash", RUN, "logs"]), worker=str(flags.worker))


def stop(flags: Namespace) -> Command:
    """Sends SIGTERM to the command on all workers: training saves, then exits with 143."""
    return ssh(flags, shlex.join(["bash", RUN, "stop"]))


def ssh(flags: Namespace, line: str, worker: str = "all", note: str = "") -> Command:
    """Runs a line of shell on the workers, in the login shell there, which parses it once."""
    words = [f"--worker={worker}", f"--command={line}", *forward_flags(flags, "internal_ip")]
    return gcloud(flags, "tpu-vm", "ssh", flags.name, *words, note=note)


def copy(flags: Namespace, files: list[Path], target: str) -> Command:
    """Copies files to all workers."""
    words = [*map(str, files), f"{flags.name}:{target}", "--worker=all", *forward_flags(flags, "internal_ip")]
    return gcloud(flags, "tpu-vm", "scp", *words)
