"""Commands of other programs, built elsewhere as lists of words: shown, or run one after the other."""

import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

MISTAKE = 2
"""Exit code of a mistake in what was given, as everywhere in this project."""
WHERE_FROM = {
    "gcloud": "https://cloud.google.com/sdk/docs/install",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "xpk": "pip install xpk",
}


class Mistake(ValueError):
    """Something the user can set right: shown as one line, exit code 2."""


@dataclass(frozen=True)
class Command:
    """One program call. As text it is a line of shell that does the same."""

    words: tuple[str, ...]
    stdin: str | None = None
    note: str = ""
    """For whoever reads the line: what only the running launcher does, such as waiting."""

    def __str__(self) -> str:
        line = shlex.join(self.words)
        if self.stdin is not None:
            line = f"printf %s {shlex.quote(self.stdin)} | {line}"
        return f"{line}  # {self.note}" if self.note else line


def show(commands: Iterable[Command]) -> int:
    """Prints them, one a line, ready to be pasted."""
    for command in commands:
        print(command)
    return 0


def run(commands: Iterable[Command]) -> int:
    """Runs them in order up to the first that fails, which one line then names; returns its exit code, or 0."""
    for command in commands:
        code = started(command).returncode
        if code:
            print(f"launch: exit code {code} from {command}", file=sys.stderr)
            return code
    return 0


def started(command: Command, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs one to its end; `capture` keeps its output. A signal's number n becomes exit code 128 + n, as in a shell.

    Raises Mistake if the program is not there.
    """
    program = command.words[0]
    if not shutil.which(program):
        source = f" ({WHERE_FROM[program]})" if program in WHERE_FROM else ""
        raise Mistake(f"{program} is not installed{source}; --dry-run shows the commands without it")
    done = subprocess.run(command.words, input=command.stdin, text=True, capture_output=capture, check=False)
    if done.returncode < 0:
        done.returncode = 128 - done.returncode
    return done


def passed_on(flags: Namespace, *names: str) -> list[str]:
    """Those flags that were given, for a program that calls them the same."""
    given = [(f"--{name.replace('_', '-')}", getattr(flags, name)) for name in names]
    return [name if value is True else f"{name}={value}" for name, value in given if value]


def parsers(document: str | None, steps: Mapping[str, str]) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """A launcher's parser, and one for each of its steps (name -> what it does), which becomes `flags.step`."""
    made = ArgumentParser(description=document, formatter_class=RawDescriptionHelpFormatter)
    each = made.add_subparsers(dest="step", required=True, metavar="|".join(steps))
    return made, {step: each.add_parser(step, help=summary, description=summary) for step, summary in steps.items()}


def split_command(argv: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The launcher's own words, and those after the first `--`: the command to launch."""
    if "--" not in argv:
        return argv, ()
    at = argv.index("--")
    return argv[:at], tuple(argv[at + 1 :])


def front(main: Callable[[list[str]], int]) -> int:
    """A launcher's exit code; a Mistake is one line."""
    try:
        return main(sys.argv[1:])
    except Mistake as mistake:
        print(f"launch: {mistake}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return 130
