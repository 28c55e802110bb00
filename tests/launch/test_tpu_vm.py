"""The commands that launch/tpu_vm.py prints."""

import shutil
import subprocess
import sys

import pytest

from launch import commands
from tests.environment import ROOT
from tests.launch.launching import NASTY, bash, dry_run, flag, launch, pasted, printed, shellcheck

WHERE = ("--name=paper", "--zone=us-east5-a", "--project=lab")
TRAIN = ("--", "mllmsubj", "train", "--config=configs/paper.py", "--workdir=runs/paper")
SECRET = "s3cr3t $HOME 'quoted'"
STEPS = {
    "create": ("--accelerator-type=v5p-64", "--spot", "--service-account=robot@lab.iam.gserviceaccount.com"),
    "setup": ("--revision=v1.0",),
    "run": TRAIN,
    "status": (),
    "logs": ("--worker=3",),
    "stop": (),
    "watch": ("--accelerator-type=v6e:4x4", "--network=net", "--subnetwork=sub", "--internal-ip", *TRAIN),
    "delete": (),
}


@pytest.fixture
def env_file(tmp_path):
    path = tmp_path / "secrets.env"
    path.write_text(f"# keys\nWANDB_API_KEY={SECRET}\n\nHF_TOKEN=hf_{SECRET}\n")
    return path


def test_create_command():
    [words] = printed("tpu_vm", "create", *WHERE, *STEPS["create"])
    assert words[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "paper"]
    assert sorted(words[6:]) == [
        "--accelerator-type=v5p-64",
        "--node-id=paper",
        "--project=lab",
        "--runtime-version=v2-alpha-tpuv5",
        "--service-account=robot@lab.iam.gserviceaccount.com",
        "--spot",
        "--zone=us-east5-a",
    ]


def test_watch_dry_run():
    """`watch` prints the commands of all steps."""
    lines = printed("tpu_vm", "watch", *WHERE, *STEPS["watch"])
    steps = [words[words.index("tpus") + 2] if "tpus" in words else words[0] for words in lines]
    assert steps == ["create", "describe", "git", "ssh", "scp", "ssh", "ssh", "ssh", "delete"]
    assert "--internal-ips" in lines[0]
    assert all("--internal-ip" in words for words in lines if {"ssh", "scp"} & set(words))
    assert lines[2:7] == [
        *printed("tpu_vm", "setup", *WHERE, "--internal-ip")[1:],
        *printed("tpu_vm", "run", *WHERE, "--internal-ip", *TRAIN),
    ]


@pytest.mark.parametrize("step", STEPS)
def test_dry_run_shellcheck(step, env_file):
    secrets = [f"--env-file={env_file}"] if step in ("setup", "watch") else []
    text = dry_run("tpu_vm", step, *WHERE, *secrets, *STEPS[step])
    assert shellcheck(text) == ""
    for words, _ in pasted(text):
        if command := [word for word in words if word.startswith("--command=")]:
            assert shellcheck(flag(command, "command")) == ""


def test_worker_scripts_shellcheck():
    for script in sorted((ROOT / "launch").glob("*.sh")):
        assert shellcheck(script.read_text()) == "", script


@pytest.mark.parametrize("step", ["setup", "watch"])
def test_dry_run_no_secrets(step, env_file):
    """The output has the path of the env file, but none of its contents."""
    text = dry_run("tpu_vm", step, *WHERE, f"--env-file={env_file}", *STEPS[step])
    assert str(env_file) in text
    for part in ("s3cr3t", "WANDB", "HF_TOKEN"):
        assert part not in text


def test_run_command_quoting(tmp_path):
    """The local shell and the worker's shell leave the command's words unchanged."""
    [words] = printed("tpu_vm", "run", *WHERE, "--", *NASTY)
    assert words[3:6] == ["tpu-vm", "ssh", "paper"]
    assert flag(words, "worker") == "all"
    (tmp_path / "mllmsubj").mkdir()
    (tmp_path / "mllmsubj" / "run_worker.sh").write_text('printf "%s\\0" "$@"')
    done = bash(flag(words, "command"), tmp_path)
    assert done.stdout.split("\0")[:-1] == ["start", *NASTY]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", *WHERE], "run takes a command after --, such as mllmsubj train …"),
        (["create", *WHERE, "--accelerator-type=v4-8", *TRAIN], "create takes no command after --, such as …"),
        (["status", "--name=My_TPU", "--zone=z"], "name 'My_TPU' must be lower-case letters, digits and hyphens, …"),
        (["setup", *WHERE, "--revision=nosuch"], "unknown --revision 'nosuch'; give a commit, tag or branch of …"),
        (["setup", *WHERE, "--env-file=nowhere.env"], "cannot read --env-file nowhere.env: No such file or directory"),
    ],
)
def test_tpu_vm_invalid_arguments(words, says):
    done = launch("tpu_vm", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"launch: {says.removesuffix('…')}")
    assert done.stderr.count("\n") == 1


def test_setup_invalid_env_file(tmp_path):
    """The error has the number of the line, but not its text."""
    path = tmp_path / "secrets.env"
    path.write_text("A=1\nexport B=s3cr3t\n")
    done = launch("tpu_vm", "setup", *WHERE, f"--env-file={path}")
    assert (done.returncode, done.stderr) == (2, f"launch: line 2 of --env-file {path} is not NAME=VALUE\n")


def test_status_without_gcloud(tmp_path):
    done = launch("tpu_vm", "status", *WHERE, env={"PATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("launch: gcloud is not installed (https://cloud.google.com/sdk/docs/install); ")
    assert done.stderr.count("\n") == 1


def test_launchers_standard_library_only():
    """The launchers can be imported without JAX and this package."""
    for script in ("tpu_vm", "gke", "local"):
        words = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, 'launch'); import {script}"]
        subprocess.run(words, cwd=ROOT, check=True)


@pytest.mark.skipif(not shutil.which("gcloud"), reason="needs gcloud, which checks its flags without a project")
@pytest.mark.slow
def test_gcloud_flags():
    """gcloud accepts the flags of all printed commands."""
    import json
    import shlex

    for step, flags in STEPS.items():
        for words in printed("tpu_vm", step, *WHERE, *flags):
            if words[0] == "gcloud":
                check = ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={shlex.join(words)}"]
                [found] = json.loads(subprocess.run(check, capture_output=True, text=True, check=True).stdout)
                assert found["success"], found["error_message"]


def test_split_command_hyphens():
    argv = ["run", "--accelerator_type=v5p_64", "--dry_run", "--", "mllmsubj", "--num_images=2"]
    words = ["run", "--accelerator-type=v5p_64", "--dry-run"]
    assert commands.split_command(argv) == (words, ("mllmsubj", "--num_images=2"))
