"""Helpers that run the launchers as processes, and the commands that they print in a shell."""

import os
import subprocess
import sys
from pathlib import Path

from tests.environment import ROOT

NASTY = (
    "plain",
    "two words",
    "it's",
    'a "quoted" $HOME; echo no | cat > /dev/null && `date` $(date) $$ \\ * ~ # !x',
    "--config.a=[1, 2]",
    "",
    "Ü – 图",
    "first\nsecond",
)
"""Words of a command that a shell changes if they are not quoted."""


def launch(script, *words, env=None, root=ROOT):
    """Runs launch/SCRIPT.py to its end."""
    command = [sys.executable, f"launch/{script}.py", *map(str, words)]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120)


def dry_run(script, *words, **options):
    """The output of a step with --dry-run, which goes before the command."""
    at = words.index("--") if "--" in words else len(words)
    done = launch(script, *words[:at], "--dry-run", *words[at:], **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


PASTE = """
record() { printf '%s\\0' "$@" '<'; cat; printf '\\0>\\0'; }
gcloud() { record gcloud "$@" </dev/null; }
git() { record git "$@" </dev/null; }
xpk() { record xpk "$@" </dev/null; }
kubectl() { record kubectl "$@"; }
"""


def pasted(text):
    """The words and the standard input of each command in printed lines, as a shell reads them."""
    done = subprocess.run(["bash", "-c", PASTE + text], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, "")
    records = [record.split("\0<\0") for record in done.stdout.split("\0>\0")[:-1]]
    return [(words.split("\0"), stdin) for words, stdin in records]


def printed(script, *words, **options):
    """The commands that a step prints, as a shell reads them."""
    return [words for words, _ in pasted(dry_run(script, *words, **options))]


def flag(words, name):
    """The value of --name in a printed command."""
    [value] = [word.removeprefix(f"--{name}=") for word in words if word.startswith(f"--{name}=")]
    return value


def shellcheck(text):
    """Warnings of ShellCheck; SC2016 is left out, since text in single quotes is for another shell."""
    command = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "--exclude=SC2016", "--format=gcc", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True).stdout


def bash(line, folder, **variables):
    """Runs a line of shell in a folder, with the environment of a login shell."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **variables}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
