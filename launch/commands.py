"""Calls of other programs, as lists of words, which are printed or run one after the other."""

import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

MISTAKE = 2
"""Exit code of a user's mistake, as everywhere in this project."""
INSTALL_URLS = {
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "xpk": "pip install xpk",
}


class Mistake(ValueError):
    """A mistake that the user can correct; it is printed as one line, and the exit code is 2."""


@dataclass(frozen=True)
class Command:
    """One program call, whose text is an equivalent line of shell."""

    words: tuple[str, ...]
    stdin: str | None = None
    note: str = ""
    """Comment for readers of the line: what only the running launcher does, such as waiting."""

    def __str__(self) -> str:
        """Returns the line of shell, with the note as a comment."""
        line = shlex.join(self.words)
        if self.stdin is not None:
            line = f"printf %s {shlex.quote(self.stdin)} | {line}"
        return f"{line}  # {self.note}" if self.note else line


def show(commands: Iterable[Command]) -> int:
    """Prints the commands, one per line, ready to be pasted into a shell."""
    for command in commands:
        print(command)
    return 0


def run(commands: Iterable[Command]) -> int:
    """Runs the commands in order, up to the first that fails, which is printed; returns its exit code, or 0."""
    for command in commands:
        code = started(command).returncode
        if code:
            print(f"launch: exit code {code} from {command}", file=sys.stderr)
            return code
    return 0


def started(command: Command, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; `capture` keeps its output. Signal n becomes exit code 128 + n, as in a shell.

    Raises Mistake if the program is not installed.
    """
    program = command.words[0]
    if not shutil.which(program):
        source = f" ({INSTALL_URLS[program]})" if program in INSTALL_URLS else ""
        raise Mistake(f"{program} is not installed{source}; --dry-run shows the commands without it")
    done = subprocess.run(command.words, input=command.stdin, text=True, capture_output=capture, check=False)
    if done.returncode < 0:
        done.returncode = 128 - done.returncode
    return done


def forward_flags(flags: Namespace, *names: str) -> list[str]:
    """Returns those of the flags that were given, for a program that has flags of the same names."""
    given = [(f"--{name.replace('_', '-')}", getattr(flags, name)) for name in names]
    return [name if value is True else f"{name}={value}" for name, value in given if value]


def parsers(document: str | None, steps: Mapping[str, str]) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """Returns a launcher's parser and one for each of its `steps` (name -> description); the name is `flags.step`."""
    made = ArgumentParser(description=document, formatter_class=RawDescriptionHelpFormatter)
    each = made.add_subparsers(dest="step", required=True, metavar="|".join(steps))
    return made, {step: each.add_parser(step, help=summary, description=summary) for step, summary in steps.items()}


def split_command(argv: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Splits the launcher's own arguments from those after the first `--`: the command to launch."""
    at = argv.index("--") if "--" in argv else len(argv)
    return hyphenated(argv[:at]), tuple(argv[at + 1 :])


def hyphenated(argv: list[str]) -> list[str]:
    """Arguments before the first `--` with hyphens in the names of flags, where underscores are accepted, too."""
    at = argv.index("--") if "--" in argv else len(argv)
    names = [word.partition("=")[0] if word.startswith("--") else "" for word in argv[:at]]
    return [name.replace("_", "-") + word[len(name) :] for name, word in zip(names, argv, strict=False)] + argv[at:]


def front(main: Callable[[list[str]], int]) -> int:
    """Runs a launcher and returns its exit code; a Mistake is printed as one line."""
    try:
        return main(sys.argv[1:])
    except Mistake as mistake:
        print(f"launch: {mistake}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return 130
