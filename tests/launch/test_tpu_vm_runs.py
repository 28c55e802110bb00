"""launch/tpu_vm.py with local folders as workers; fake_gcloud.py replaces gcloud.

The checkout is a small repository with the launchers; a fake `uv` records its arguments and installs nothing.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.environment import ROOT
from tests.launch.launching import NASTY, launch
from tests.launch.test_tpu_vm import SECRET
from tests.train.runs import CONFIG, losses, metrics, saves

WHERE = ("--name=paper", "--zone=z")
SLICE = ("--accelerator-type=v5p-16", "--interval=0.05")
TRAINER = """
import os, pathlib, signal, sys, time
shared, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
me = os.environ["JAX_PROCESS_ID"]
step_file = shared / f"step-{me}"
step = int(step_file.read_text()) if step_file.exists() else 0
def stop(*_):
    time.sleep(0.2)
    step_file.write_text(str(step))
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
with (shared / f"starts-{me}").open("a") as file:
    address, count = os.environ["JAX_COORDINATOR_ADDRESS"], os.environ["JAX_NUM_PROCESSES"]
    file.write(f"{step} {address} {me} of {count} {os.environ.get('WANDB_API_KEY')}\\n")
while step < steps or not (shared / "may-end").exists():
    time.sleep(0.02)
    step += 1
print("trained", flush=True)
sys.exit(int(sys.argv[3]))
"""
"""A training that counts steps, resumes from its step file, and exits with the given code once `may-end` exists."""


class Metadata(BaseHTTPRequestHandler):
    """Google's metadata server for a worker of a slice of two hosts."""

    def do_GET(self):
        number = str(self.server.number)
        answers = {"worker-network-endpoints": "a:0:127.0.0.1,b:1:127.0.0.2", "agent-worker-number": number}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answers[self.path.rpartition("/")[2]].encode())

    def log_message(self, *_):
        pass


class Cloud:
    """The checkout, the workers, and the recorded calls of gcloud."""

    def __init__(self, folder, ports):
        self.folder, self.root = folder, folder / "checkout"
        self.shared = folder / "shared"
        for made in ("bin", "shared", "tmp"):
            (folder / made).mkdir()
        (folder / "metadata").write_text("\n".join(map(str, ports)))
        fake = Path(__file__).with_name("fake_gcloud.py")
        self.program("gcloud", f'exec {sys.executable} {fake} "$@"')
        self.program("uv", f'echo "$@" >>{folder}/uv; [ "$1" != venv ] || mkdir -p venv/bin')
        shutil.copytree(ROOT / "launch", self.root / "launch", ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["git", "init", "--quiet", self.root], check=True)
        self.commit(TRAINER)
        self.env = os.environ | {"FAKE_CLOUD": str(folder), "TMPDIR": str(folder / "tmp")}
        self.env |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}

    def program(self, name, line):
        path = self.folder / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{line}\n")
        path.chmod(0o755)

    def commit(self, trainer):
        (self.root / "trainer.py").write_text(trainer)
        git = ["git", "-c", "user.name=a", "-c", "user.email=b", "-C", self.root]
        for words in (["add", "."], ["commit", "--quiet", "--message=all"]):
            subprocess.run([*git, *words], check=True)

    def do(self, step, *words):
        return launch("tpu_vm", step, *WHERE, *words, env=self.env, root=self.root)

    def watch(self, *words):
        command = [sys.executable, "launch/tpu_vm.py", "watch", *WHERE, *SLICE, *words]
        return subprocess.Popen(command, cwd=self.root, env=self.env, stderr=subprocess.PIPE, text=True)

    def train(self, steps=3, code=0):
        return ("--", sys.executable, "trainer.py", str(self.shared), str(steps), str(code))

    def worker(self, index, name):
        return self.folder / "workers" / str(index) / "mllmsubj" / name

    def starts(self, index=0):
        path = self.shared / f"starts-{index}"
        return path.read_text().splitlines() if path.exists() else []

    def calls(self):
        return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]

    def preempt(self):
        """Preempts the slice as Google does: SIGTERM to all processes, then the slice is suspended."""
        (self.folder / "state").write_text("SUSPENDING")
        for index in (0, 1):
            pid = int(self.worker(index, "pid").read_text())
            os.killpg(os.getpgid(pid), signal.SIGTERM)
            wait_for(self.worker(index, "exit_code").exists)
            assert not Path(f"/proc/{pid}").exists()  # the exit code is written last
        (self.folder / "state").write_text("SUSPENDED")


@pytest.fixture
def cloud(tmp_path):
    servers = [ThreadingHTTPServer(("localhost", 0), Metadata) for _ in range(2)]
    for number, server in enumerate(servers):
        server.number = number
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made = Cloud(tmp_path, [server.server_port for server in servers])
    yield made
    for pid in tmp_path.glob("workers/*/mllmsubj/pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)
    for server in servers:
        server.shutdown()
        server.server_close()


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.02)


def succeeded(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_steps_create_to_delete(cloud, tmp_path):
    """While a command runs, the same `run` may be repeated; another command and a new setup are refused."""
    secrets = tmp_path / "secrets.env"
    secrets.write_text(f"WANDB_API_KEY={SECRET}\n")
    succeeded(cloud.do("create", SLICE[0]))
    done = cloud.do("setup", SLICE[1], f"--env-file={secrets}")
    assert "paper: PROVISIONING" in done.stderr  # setup has waited
    assert succeeded(done).count("is set up") == 2
    assert "none" in succeeded(cloud.do("status"))

    succeeded(cloud.do("run", *cloud.train()))
    assert succeeded(cloud.do("status")).split("\n", 1)[1] == "mllmsubj: running\n" * 2
    succeeded(cloud.do("run", *cloud.train()))  # as gcloud repeats it after a lost connection
    other = cloud.do("run", *cloud.train(steps=4))
    assert (other.returncode, "another command is running" in other.stderr) == (1, True)
    again = cloud.do("setup")
    assert (again.returncode, "a command is running here" in again.stderr) == (1, True)
    wait_for(lambda: cloud.starts(0) and cloud.starts(1))
    assert cloud.starts(1) == [f"0 127.0.0.1:8482 1 of 2 {SECRET}"]

    (cloud.shared / "may-end").touch()
    log = succeeded(cloud.do("logs", "--worker=1"))
    assert log.endswith("trained\nmllmsubj: exited 0\n")
    assert (cloud.starts(0), len(cloud.starts(1))) == ([f"0 127.0.0.1:8482 0 of 2 {SECRET}"], 1)
    succeeded(cloud.do("delete"))
    assert not (tmp_path / "workers").exists()


def test_watch_two_preemptions(cloud, tmp_path):
    """The run resumes on new machines with its secrets and its code; no gcloud call and no output has a secret."""
    secrets = tmp_path / "secrets.env"
    secrets.write_text(f"WANDB_API_KEY={SECRET}\n")
    process = cloud.watch("--spot", f"--env-file={secrets}", *cloud.train())
    for life in (1, 2):
        wait_for(lambda life=life: len(cloud.starts(0)) == len(cloud.starts(1)) == life)
        cloud.commit(f"raise SystemExit({life})")
        assert cloud.worker(0, "variables").stat().st_mode & 0o777 == 0o600
        cloud.preempt()
    wait_for(lambda: len(cloud.starts(0)) == len(cloud.starts(1)) == 3)
    (cloud.shared / "may-end").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err

    steps = [[int(line.split()[0]) for line in cloud.starts(index)] for index in (0, 1)]
    assert all(first == 0 < second < third for first, second, third in steps)
    assert all(line.endswith(f"1 of 2 {SECRET}") for line in cloud.starts(1))
    done = [words[3] for words in cloud.calls()]
    assert [name for name in done if name in ("create", "delete")] == ["create", "delete", "create", "delete", "create"]
    assert "s3cr3t" not in (tmp_path / "calls.jsonl").read_text()
    assert "s3cr3t" not in err


def test_watch_stopped_run(cloud):
    """A stopped run is started again on the same machines."""
    process = cloud.watch(*cloud.train())
    wait_for(lambda: len(cloud.starts(0)) == len(cloud.starts(1)) == 1)
    succeeded(cloud.do("stop"))
    wait_for(lambda: len(cloud.starts(0)) == len(cloud.starts(1)) == 2)
    (cloud.shared / "may-end").touch()
    process.communicate(timeout=60)
    assert process.returncode == 0
    calls = [words[3] for words in cloud.calls()]
    assert (calls.count("create"), calls.count("delete"), calls.count("scp")) == (1, 0, 1)


def test_watch_restart(cloud):
    """A new `watch` continues after the first was killed; the command is not started again."""
    process = cloud.watch(*cloud.train())
    wait_for(lambda: len(cloud.starts(0)) == len(cloud.starts(1)) == 1)
    process.kill()
    process.communicate()
    process = cloud.watch(*cloud.train())
    (cloud.shared / "may-end").touch()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(cloud.starts(0)) == 1


def test_watch_exit_code(cloud):
    """`watch` ends with the exit code of a command that fails."""
    (cloud.shared / "may-end").touch()
    process = cloud.watch(*cloud.train(code=7))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 7, err
    assert len(cloud.starts(0)) == 1


def test_watch_failed_requests(cloud):
    """`watch` ends after five failed requests in a row."""
    process = cloud.watch("--accelerator-type=v5p-12288", *cloud.train())
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.endswith("gave up after 5 failures in a row\n")


def test_run_command_quoting(cloud):
    """Both workers get the command's words unchanged."""
    succeeded(cloud.do("create", SLICE[0]))
    succeeded(cloud.do("setup", SLICE[1]))
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    succeeded(cloud.do("run", "--", sys.executable, "-c", code, *NASTY))
    for index in (0, 1):
        wait_for(cloud.worker(index, "exit_code").exists)
        assert json.loads(cloud.worker(index, "log").read_text().splitlines()[-1]) == list(NASTY)


def test_setup_commit_and_constraints(cloud):
    """Workers get the committed code, and packages by constraints.txt; uncommitted changes are reported."""
    (cloud.root / "trainer.py").write_text("changed")
    succeeded(cloud.do("create", SLICE[0]))
    done = cloud.do("setup", SLICE[1])
    assert "launch: not committed, so not on the workers: trainer.py\n" in done.stderr
    assert cloud.worker(0, "source/trainer.py").read_text() == TRAINER
    asked = (cloud.folder / "uv").read_text().splitlines()
    assert asked[0] == "venv --quiet --python 3.11 venv"
    assert re.search(r"--constraint source/constraints.txt --editable ./source\[tpu,train\]$", asked[1])


def test_setup_failure(cloud):
    """`setup` ends at the first command that fails, with its exit code."""
    succeeded(cloud.do("create", SLICE[0]))
    cloud.program("uv", "echo no packages >&2; exit 9")
    done = cloud.do("setup", SLICE[1])
    assert done.returncode == 9
    last = done.stderr.splitlines()[-1]
    assert last.startswith("launch: exit code 9 from gcloud compute tpus tpu-vm ssh paper --worker=all")


@pytest.mark.slow
def test_train_preemption(cloud, tmp_path):
    """Two workers train, save a checkpoint on SIGTERM, and resume from it on new machines."""
    settings = tmp_path / "cpu.env"
    settings.write_text("JAX_PLATFORMS=cpu\nXLA_FLAGS=--xla_backend_optimization_level=0\n")
    workdir = cloud.shared / "run"
    train = [sys.executable, "-m", "mllmsubj", "train", f"--config={CONFIG}", f"--workdir={workdir}"]
    train += ["--config.train.stage1.steps=0", "--config.train.stage2.steps=20", "--config.checkpoint.every_steps=100"]
    process = cloud.watch(f"--env-file={settings}", "--", *train)
    wait_for((workdir / "metrics.jsonl").exists, 300)
    wait_for(lambda: len(metrics(workdir)) >= 3, 300)
    cloud.preempt()
    [saved] = saves(workdir)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert 3 <= saved < 20
    assert len(losses(workdir)) == 20
    assert (workdir / "model").is_dir()
