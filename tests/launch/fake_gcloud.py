"""A local replacement for `gcloud compute tpus`: the request is a file, and the workers are folders.

FAKE_CLOUD names the folder: `calls.jsonl` (argv of every call), `state` (of the request; absent if there is none),
`workers/0`, `workers/1` (their homes), `metadata` (port of each worker's metadata server, one per line).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
STATE = CLOUD / "state"
PENDING = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]


def main(words: list[str]) -> int:
    with (CLOUD / "calls.jsonl").open("a") as file:
        file.write(json.dumps(words) + "\n")
    assert words[:2] == ["compute", "tpus"]
    flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    names = [word for word in words[4:] if not word.startswith("--")]
    if words[3] == "create":
        STATE.write_text("FAILED" if flags["accelerator-type"] == "v5p-12288" else PENDING[0])
        return 0
    if not STATE.exists():
        print("ERROR: (gcloud) NOT_FOUND: no such resource", file=sys.stderr)
        return 1
    if words[3] == "describe":
        state = STATE.read_text()
        print(state)
        if state in PENDING[:-1]:
            STATE.write_text(PENDING[PENDING.index(state) + 1])
        return 0
    if words[3] == "delete":
        STATE.unlink()
        shutil.rmtree(CLOUD / "workers")
        return 0
    if STATE.read_text() != "ACTIVE":
        print("ERROR: cannot connect", file=sys.stderr)
        return 255
    return {"ssh": ssh, "scp": scp}[words[3]](names, flags)


def chosen(flags: dict[str, str]) -> list[int]:
    """The workers that a call is for; the first call makes their home folders."""
    ports = (CLOUD / "metadata").read_text().split()
    for index in range(len(ports)):
        (CLOUD / "workers" / str(index)).mkdir(parents=True, exist_ok=True)
    return list(range(len(ports))) if flags["worker"] == "all" else [int(flags["worker"])]


def ssh(_: list[str], flags: dict[str, str]) -> int:
    """Runs the command in a shell on each worker, as ssh does: gcloud splits it at spaces, and ssh joins it again."""
    code = 0
    ports = (CLOUD / "metadata").read_text().split()
    for index in chosen(flags):
        home = CLOUD / "workers" / str(index)
        env = {"HOME": str(home), "PATH": os.environ["PATH"], "GCE_METADATA_IP": f"localhost:{ports[index]}"}
        code = subprocess.run(["bash", "-c", flags["command"]], cwd=home, env=env).returncode or code
    return code


def scp(names: list[str], flags: dict[str, str]) -> int:
    """Copies files as scp does: an existing file keeps its mode, and a new file gets that of the source."""
    *sources, target = names
    for index in chosen(flags):
        place = CLOUD / "workers" / str(index) / target.partition(":")[2]
        for source in sources:
            to = place / Path(source).name if place.is_dir() else place
            (shutil.copyfile if to.exists() else shutil.copy)(source, to)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
