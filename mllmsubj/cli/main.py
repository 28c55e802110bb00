"""The command line: `mllmsubj COMMAND --flag=value …`; `python -m mllmsubj` is the same.

A user's mistake is one line on stderr and exit code 2; `--debug`, or MLLMSUBJ_DEBUG=1, adds the traceback. Any other
exception is a bug: its traceback is printed, and the exit code is 1. Flags may be written with hyphens or underscores.
"""

import gc
import importlib
import importlib.util
import logging
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from absl import flags

from mllmsubj.cli import interrupts
from mllmsubj.errors import UserError, nearest

COMMANDS = {
    "generate": "generate images of a subject from reference images and a prompt",
    "demo": "run everything on this machine in minutes: a short training, images, scores, a report",
    "import": "convert Hugging Face folders of InternVL, FLUX and CLIP to a checkpoint to train on",
    "train": "train both stages; run again, it resumes exactly",
    "pretrain": "train a component of the tiny model on toyworld from scratch",
    "sweep": "train and evaluate the runs of a sweep, here or through a launcher, and summarize them",
    "reproduce": "reproduce the paper's tables on toyworld: train and evaluate every variant, compare the order",
    "evaluate": "evaluate a checkpoint on held-out data: metrics, images and a report",
    "export": "export what was trained: the LoRA as diffusers loads it, the DLA, a model card",
    "config": "print a config with the origin of every value, or compare two",
    "data": "preview toyworld, pack a data set into a few large files, or check that all of it can be read",
    "compile": "compile for a TPU slice ahead of time: memory, estimated speed, communication between chips",
    "bench": "measure speed against a peer in one run, as ratios",
}
"""Name -> description; each is a module of `mllmsubj.cli` with `define(flags)` and `run(flags, argv)`."""

STDOUT = 1
"""The process's file descriptor, even where `sys.stdout` is replaced."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 1 a bug, 2 a user's mistake, 130 interrupted, 141 closed pipe."""
    argv, debug = _flags(list(sys.argv if argv is None else argv))
    try:
        interrupts.install()
        run(argv)
        print(end="", flush=True)  # print handles a missing sys.stdout
    except (UserError, flags.Error) as error:
        if debug:
            traceback.print_exc()
        print(f"mllmsubj: error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("mllmsubj: interrupted", file=sys.stderr, flush=True)
        with suppress(OSError):
            print(end="", flush=True)
        # Not sys.exit: threads of XLA that still compute may crash during the shutdown of the interpreter.
        os._exit(128 + signal.SIGINT)
    except BrokenPipeError:
        if not _stdout_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # else Python reports the closed pipe again at exit
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        traceback.print_exc()
        what = f"{type(error).__name__}: {_one_line(error)[:200]}"
        print(f"mllmsubj: bug: {what}; please report it with the lines above and the command", file=sys.stderr)
        sys.exit(1)
    finally:
        interrupts.end()


def run(argv: list[str]) -> None:
    """Runs one command, `argv[0]` being the program; raises UserError or absl's flags.Error."""
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(_usage())
        return
    name, rest = argv[1], argv[2:]
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}; known: {', '.join(COMMANDS)}")
    command = importlib.import_module(f"mllmsubj.cli.{name}")
    values = flags.FlagValues()
    command.define(values)
    if {"-h", "--help"} & set(rest):
        print(f"mllmsubj {name}: {COMMANDS[name]}\n\n{command.__doc__}\n{values.get_help(include_special_flags=False)}")
        return
    _set_up()
    command.run(values, [f"mllmsubj {name}", *rest])


def start_logging() -> None:
    """Sends log records of a long command to stderr; must be called before JAX and others set up logging."""
    logging.basicConfig(format="mllmsubj: %(message)s")
    logging.getLogger("mllmsubj").setLevel(logging.INFO)


def require_train_extra(what: str) -> None:
    """Raises UserError if the extra 'train' is not installed; the message begins with `what`."""
    if importlib.util.find_spec("grain") is None or importlib.util.find_spec("optax") is None:
        raise UserError(f"{what} the extra 'train': pip install 'mllmsubj[train]'")


def use_compilation_cache(workdir: Path) -> None:
    """Places the compilation cache in a run's workdir, which outlives its machines.

    A JAX_COMPILATION_CACHE_DIR that the user set is kept. Child processes inherit it. Must be called before JAX starts.
    """
    if os.environ["JAX_COMPILATION_CACHE_DIR"] == str(_users_cache()):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(workdir.absolute() / "compiled")


def _users_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mllmsubj" / "jax"


def _set_up() -> None:
    """Sets a compilation cache and one-line warnings; must be called before JAX starts and reads its settings."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_users_cache()))
    if importlib.util.find_spec("libtpu") and not _has_accelerator():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # here libtpu only compiles, and would warn of a missing TPU
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    # TensorFlow, which TFDS and the TensorBoard writer import, logs lines at import; it computes nothing here.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    gc.set_threshold(10_000)  # tracing creates millions of objects; the default threshold costs a tenth of its time
    warnings.showwarning = lambda message, *_, **__: print(f"mllmsubj: warning: {message}", file=sys.stderr)


def _stdout_closed() -> bool:
    """Returns whether the reader of stdout, such as `| head`, has closed its end of the pipe."""
    output = select.poll()
    output.register(STDOUT, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def _has_accelerator() -> bool:
    """Returns whether a TPU or NVIDIA GPU is present, by vendor among the PCI devices; starts no backend."""
    vendors = {path.read_text().strip() for path in Path("/sys/bus/pci/devices").glob("*/vendor")}
    devices = ("/dev/accel0", "/dev/vfio/0", "/dev/nvidia0")  # device files in containers
    return bool({"0x1ae0", "0x10de"} & vendors) or any(map(os.path.exists, devices))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return (
        "usage: mllmsubj COMMAND [--flag=value …]\n\n"
        + "\n".join(lines)
        + "\n\nmllmsubj COMMAND --help lists its flags; --debug shows the traceback of an error"
    )


def _flags(argv: list[str]) -> tuple[list[str], bool]:
    """Returns the arguments, with underscores in names of flags and without `--debug`, and whether that was given."""
    end = argv.index("--") if "--" in argv else len(argv)
    words, debug = [], os.environ.get("MLLMSUBJ_DEBUG", "") not in ("", "0")
    for word in argv[:end]:
        name, equals, value = word.partition("=")
        if word == "--debug":
            debug = True
        elif name.startswith("--"):
            words.append(f"--{name[2:].replace('-', '_')}{equals}{value}")
        else:
            words.append(word)
    return words + argv[end:], debug


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
