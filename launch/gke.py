"""Runs a command on TPU slices of GKE, through a JobSet manifest made from flags, or through xpk.

    FLAGS="--name=paper --accelerator-type=v5p-64 --image=IMAGE --secret=mllmsubj"
    python launch/gke.py render $FLAGS -- mllmsubj train --config=paper --workdir=DIR   # prints the manifest
    python launch/gke.py apply $FLAGS -- mllmsubj train --config=paper --workdir=DIR
    python launch/gke.py logs --name=paper
    python launch/gke.py delete --name=paper
    python launch/gke.py xpk --name=paper --accelerator-type=v5p-64 --image=IMAGE --cluster=CLUSTER -- mllmsubj train …

A preempted slice is restarted without limit, and so is a command that saved and stopped after SIGTERM (exit code 143);
any other failure counts towards --max-restarts. --secret names a secret of the cluster, made by
`kubectl create secret generic NAME --from-env-file=FILE`; its keys become environment variables. --dry-run prints the
commands instead, one per line, for a shell. The cluster needs JobSet 0.6 or newer and a node pool for each slice; the
image is built by launch/Dockerfile. The manifest is JSON, which is YAML too.
"""

import argparse
import json
import re
import shlex
import sys
from typing import Any

from commands import Command, Mistake, forward_flags, front, parsers, run, show, split_command
from slices import find_slice

STEPS = {
    "render": "print the manifest: … render … -- COMMAND",
    "apply": "start it: … apply … -- COMMAND",
    "logs": "follow one worker's log",
    "delete": "stop it, with a grace period to save",
    "xpk": "start it through xpk, on a cluster that xpk made: … xpk … -- COMMAND",
}
STOPPED = 143
"""Exit code of a command that has saved after SIGTERM; see mllmsubj/cli/train.py."""
CONTAINER = "worker"


def main(argv: list[str]) -> int:
    """Runs one step; returns the exit code of the command that failed, or 0."""
    argv, command = split_command(argv)
    flags = parser().parse_args(argv)
    if (flags.step in ("render", "apply", "xpk")) != bool(command):
        raise Mistake(f"{flags.step} takes {'a' if not command else 'no'} command after --, such as mllmsubj train …")
    # Pods are named NAME-slice-0-0 plus six characters by Kubernetes, at most 63 in all.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", flags.name):
        raise Mistake(f"name {flags.name!r} must be at most 40 lower-case letters, digits and hyphens")
    if flags.step == "render":
        print(json.dumps(manifest(flags, command), indent=2))
        return 0
    return (show if flags.dry_run else run)([planned(flags, command)])


def planned(flags: argparse.Namespace, command: tuple[str, ...]) -> Command:
    """Returns the command of a step."""
    if flags.step == "xpk":
        return xpk(flags, command)
    if flags.step == "apply":
        return kubectl(flags, "apply", "--filename=-", stdin=json.dumps(manifest(flags, command)))
    if flags.step == "delete":
        return kubectl(flags, "delete", "jobset", flags.name)
    labels = {
        "jobset.sigs.k8s.io/jobset-name": flags.name,
        "jobset.sigs.k8s.io/job-index": flags.slice,
        "batch.kubernetes.io/job-completion-index": flags.worker,
    }
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return kubectl(flags, "logs", "--follow", "--tail=-1", f"--selector={selector}")


def kubectl(flags: argparse.Namespace, *words: str, stdin: str | None = None) -> Command:
    """Returns a kubectl call for the flags' cluster and namespace."""
    return Command(("kubectl", *words, *forward_flags(flags, "context", "namespace")), stdin=stdin)


def xpk(flags: argparse.Namespace, command: tuple[str, ...]) -> Command:
    """Returns the xpk call that corresponds to `apply`; xpk restarts after exit codes from 127 on, 143 among them."""
    line = shlex.join(command)
    if "\n" in line:
        raise Mistake("xpk cannot take a command with line breaks")
    words = [
        f"--workload={flags.name}",
        f"--tpu-type={find_slice(flags.accelerator_type).accelerator_type}",
        f"--num-slices={flags.slices}",
        f"--docker-image={flags.image}",
        f"--termination-grace-period-seconds={flags.grace_seconds}",
        # xpk inserts the command into a bash script in a manifest.
        f"--command={literal(line)}",
    ]
    words += forward_flags(flags, "cluster", "project", "zone", "max_restarts", "env_file")
    return Command(("xpk", "workload", "create", *words))


def manifest(flags: argparse.Namespace, command: tuple[str, ...]) -> dict[str, Any]:
    """Returns the JobSet: a Job for each slice, a pod for each of its hosts.

    Source: kubernetes-sigs/jobset, docs/tasks/tpu_multislice and examples/failure-policy.
    """
    hosts = find_slice(flags.accelerator_type).hosts
    ended_by_others = [
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [STOPPED]},
        },
    ]
    job = {
        "completions": hosts,
        "parallelism": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": ended_by_others},
        "template": {"spec": pod(flags, command)},
    }
    # All hosts of a slice must be in one node pool, whose chips are connected.
    together = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    again = {
        "name": "interrupted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": flags.name, "annotations": together},
        "spec": {
            "failurePolicy": {"maxRestarts": flags.max_restarts, "rules": [again]},
            "replicatedJobs": [{"name": "slice", "replicas": flags.slices, "template": {"spec": job}}],
        },
    }


def pod(flags: argparse.Namespace, command: tuple[str, ...]) -> dict[str, Any]:
    """Returns the pod of one host, with all its chips, the host's network, and a grace period to save."""
    part = find_slice(flags.accelerator_type)
    container = {
        "name": CONTAINER,
        "image": flags.image,
        "command": [literal(word) for word in command],
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "securityContext": {"privileged": True},
        "resources": {"limits": {"google.com/tpu": part.chips_per_host}},
    }
    if flags.secret:
        container["envFrom"] = [{"secretRef": {"name": flags.secret}}]
    selector = {
        "cloud.google.com/gke-tpu-accelerator": part.generation.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": part.topology,
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": flags.grace_seconds,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector | ({"cloud.google.com/gke-spot": "true"} if flags.spot else {}),
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists"}],
        "containers": [container],
    }


def literal(text: str) -> str:
    """Escapes dollar signs in a container's command, where Kubernetes expands $(NAME)."""
    return text.replace("$", "$$")


def parser() -> argparse.ArgumentParser:
    """Returns the parser; flags have the names that kubectl and xpk use."""
    made, each = parsers(__doc__, STEPS)
    for step, flags in each.items():
        flags.add_argument("--name", required=True, help="of the JobSet")
        if step != "render":
            flags.add_argument("--dry-run", action="store_true", help="print the command, run none")
        if step in ("apply", "logs", "delete"):
            flags.add_argument("--context", help="cluster, by kubectl's name (default: kubectl's)")
            flags.add_argument("--namespace")
        if step in ("render", "apply", "xpk"):
            flags.add_argument("--accelerator-type", required=True, help="such as v5p-64 or v5p:2x4x4")
            flags.add_argument("--slices", type=int, default=1)
            flags.add_argument("--image", required=True, help="with mllmsubj in it; see launch/Dockerfile")
            flags.add_argument("--max-restarts", type=int, default=10, help="after failures (default: 10)")
            flags.add_argument(
                "--grace-seconds",
                type=int,
                default=150,
                help="from SIGTERM to SIGKILL; more than config.checkpoint.grace_seconds (default: 150, for its 120)",
            )
        if step in ("render", "apply"):
            flags.add_argument("--secret", help="secret of the cluster whose keys become environment variables")
            flags.add_argument("--spot", action="store_true", help="on preemptible nodes")
        if step == "logs":
            flags.add_argument("--slice", type=int, default=0, help="its number (default: 0)")
            flags.add_argument("--worker", type=int, default=0, help="its number in the slice (default: 0)")
        if step == "xpk":
            flags.add_argument("--cluster", required=True)
            flags.add_argument("--project")
            flags.add_argument("--zone")
            flags.add_argument("--env-file", help="NAME=VALUE lines; xpk puts them into the manifest")
    return made


if __name__ == "__main__":
    sys.exit(front(main))
