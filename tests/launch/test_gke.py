"""The JobSet manifest, and the commands that apply it to a cluster."""

import json
import os
import re

import pytest
import yaml

from tests.launch.launching import NASTY, bash, dry_run, flag, launch, pasted, printed, shellcheck

FLAGS = ("--name=paper", "--accelerator-type=v5p-64", "--image=registry/image:tag")
TRAIN = ("--", "mllmsubj", "train", "--config=configs/paper.py", "--workdir=runs/paper")


def rendered(*flags, command=TRAIN):
    done = launch("gke", "render", *FLAGS, *flags, *command)
    assert (done.returncode, done.stderr) == (0, "")
    return yaml.safe_load(done.stdout)


def job(manifest):
    [part] = manifest["spec"]["replicatedJobs"]
    return part["template"]["spec"]


def container(manifest):
    [one] = job(manifest)["template"]["spec"]["containers"]
    return one


def expanded(word, variables):
    """A word of a container's command after Kubernetes has expanded it.

    Source: kubernetes, third_party/forked/golang/expansion: `$$` is `$`, `$(NAME)` a variable if there is one.
    """
    return re.sub(
        r"\$(\$|\(([^)]*)\))",
        lambda found: "$" if found[1] == "$" else variables.get(found[2], found[0]),
        word,
    )


def test_render_jobset():
    manifest = rendered("--slices=2", "--max-restarts=3")
    assert manifest == {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": "paper",
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": 3,
                "rules": [
                    {
                        "name": "interrupted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": "slice", "replicas": 2, "template": {"spec": job(manifest)}}],
        },
    }


def test_render_job_template():
    manifest = rendered("--secret=mllmsubj")
    counts = {key: job(manifest)[key] for key in ("completions", "parallelism", "backoffLimit")}
    assert counts == {"completions": 8, "parallelism": 8, "backoffLimit": 0}
    pod = job(manifest)["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy requires it
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x4x4",
    }
    assert container(manifest) == {
        "name": "worker",
        "image": "registry/image:tag",
        "command": list(TRAIN[1:]),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "envFrom": [{"secretRef": {"name": "mllmsubj"}}],
        "securityContext": {"privileged": True},
        "resources": {"limits": {"google.com/tpu": 4}},
    }


@pytest.mark.parametrize(
    ("name", "chips"), [("v4-16", 8), ("v5litepod-1", 1), ("v5e:2x4", 8), ("v5p:4x4x8", 128), ("v6e-64", 64)]
)
def test_render_chips_per_host(name, chips):
    """The hosts request all chips of the slice."""
    manifest = rendered(f"--accelerator-type={name}")
    assert job(manifest)["parallelism"] * container(manifest)["resources"]["limits"]["google.com/tpu"] == chips


def test_render_failure_policy():
    """Preempted and stopped runs restart without limit.

    Both fail the Job by its podFailurePolicy, and the rule of the JobSet has this as its reason.
    """
    rules = job(rendered())["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob", "FailJob"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[1]["onExitCodes"] == {"containerName": "worker", "operator": "In", "values": [143]}


def test_render_grace_period():
    """The termination grace period is longer than the default `checkpoint.grace_seconds`."""
    from mllmsubj.config.schema import default_config

    grace = job(rendered())["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > default_config().checkpoint.grace_seconds


def test_render_spot():
    assert job(rendered("--spot"))["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_render_command_quoting():
    words = container(rendered(command=("--", *NASTY, "$(HOME) $$(HOME) $$$")))["command"]
    assert [expanded(word, {"HOME": "/root"}) for word in words] == [*NASTY, "$(HOME) $$(HOME) $$$"]


def test_apply_dry_run():
    text = dry_run("gke", "apply", *FLAGS, "--context=cluster", "--namespace=team", "--", *NASTY)
    [(words, stdin)] = pasted(text)
    assert words == ["kubectl", "apply", "--filename=-", "--context=cluster", "--namespace=team"]
    assert json.loads(stdin) == rendered(command=("--", *NASTY))
    assert shellcheck(text) == ""


def test_apply_kubectl(tmp_path):
    """kubectl gets the manifest on its standard input, and its exit code is returned."""
    (tmp_path / "kubectl").write_text('#!/bin/sh\necho "$@" >"$0.words"\ncat >"$0.stdin"\nexit 3\n')
    (tmp_path / "kubectl").chmod(0o755)
    done = launch("gke", "apply", *FLAGS, *TRAIN, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert done.returncode == 3
    assert done.stderr.startswith("launch: exit code 3 from ")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "kubectl.words").read_text() == "apply --filename=-\n"
    assert json.loads((tmp_path / "kubectl.stdin").read_text()) == rendered()


def test_logs_and_delete_commands():
    [logs] = printed("gke", "logs", "--name=paper", "--slice=1", "--worker=2")
    assert logs[:4] == ["kubectl", "logs", "--follow", "--tail=-1"]
    assert flag(logs, "selector").split(",") == [
        "jobset.sigs.k8s.io/jobset-name=paper",
        "jobset.sigs.k8s.io/job-index=1",
        "batch.kubernetes.io/job-completion-index=2",
    ]
    assert printed("gke", "delete", "--name=paper") == [["kubectl", "delete", "jobset", "paper"]]


def test_xpk_flags(tmp_path):
    text = dry_run("gke", "xpk", *FLAGS, "--cluster=c", "--zone=z", "--env-file=secrets.env", *TRAIN)
    [(words, _)] = pasted(text)
    assert words[:3] == ["xpk", "workload", "create"]
    expected = {"workload": "paper", "cluster": "c", "zone": "z", "tpu-type": "v5p-64", "num-slices": "1"}
    expected |= {"env-file": "secrets.env", "max-restarts": "10", "docker-image": "registry/image:tag"}
    assert {name: flag(words, name) for name in expected} == expected
    assert shellcheck(text) == ""


def test_xpk_command_quoting(tmp_path):
    """xpk runs `bash -c` with a script that has the command in parentheses."""
    asked = [word for word in NASTY if "\n" not in word]
    [words] = printed("gke", "xpk", *FLAGS, "--cluster=c", "--", "printf", "%s\\0", *asked)
    done = bash(f"({expanded(flag(words, 'command'), {'HOME': '/root'})})", tmp_path)
    assert done.stdout.split("\0")[:-1] == asked


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["render", *FLAGS], "render takes a command after --, such as mllmsubj train …"),
        (["delete", "--name=a", "--", "x"], "delete takes no command after --, such as mllmsubj train …"),
        (["delete", "--name=A_b"], "name 'A_b' must be at most 40 lower-case letters, digits and hyphens"),
        (["xpk", *FLAGS, "--cluster=c", "--", "a\nb"], "xpk cannot take a command with line breaks"),
    ],
)
def test_gke_invalid_arguments(words, says):
    done = launch("gke", *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"launch: {says}\n")
