"""The command line: `mllmsubj COMMAND --flag=value …`; `python -m mllmsubj` is the same.

A user's mistake is one line on stderr and exit code 2.
"""

import gc
import importlib
import importlib.util
import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from absl import flags

from mllmsubj.cli import interrupts
from mllmsubj.errors import UserError, nearest

COMMANDS = {
    "generate": "draw the subject of a picture as a prompt says",
    "demo": "the whole thing on this machine: both stages of training in short, pictures, scores, a report",
    "import": "weights of InternVL, FLUX and CLIP in Hugging Face folders: a checkpoint to train on",
    "train": "train both stages; run again, it resumes exactly",
    "pretrain": "make a part of the tiny model on toyworld, from nothing",
    "sweep": "the runs of a sweep, here or through a launcher: train, judge, sum up",
    "reproduce": "the paper's tables in miniature: every variant trained, judged, and the paper's order checked",
    "evaluate": "judge a checkpoint on data that training did not see: numbers, pictures and a report",
    "export": "what was trained, for others: the LoRA as diffusers loads it, the DLA, a model card",
    "config": "print a config: every key, its value and where that comes from; compare two",
    "data": "preview: a contact sheet of toyworld; pack: a data set as a few large files; check: is all of it readable",
    "compile": "for a TPU slice that is not here: does it fit, how fast can it be, what is sent between chips",
    "bench": "speed against a peer, in one run, as ratios",
}
"""Name -> what it does; each is a module of `mllmsubj.cli` with `define(flags)` and `run(flags, argv)`."""

STDOUT = 1
"""The process's own file descriptor, whatever stands for `sys.stdout`."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 2 a mistake in what was given, 130 interrupted, 141 its reader has gone."""
    argv = list(sys.argv if argv is None else argv)
    try:
        interrupts.install()
        run(argv)
        print(end="", flush=True)  # there may be no sys.stdout, which print knows
    except (UserError, flags.Error) as error:
        print(f"mllmsubj: error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("mllmsubj: interrupted", file=sys.stderr, flush=True)
        with suppress(OSError):
            print(end="", flush=True)
        # Not sys.exit: threads of XLA that still compute now and then crash when Python takes itself apart around them.
        os._exit(128 + signal.SIGINT)
    except BrokenPipeError:
        if not _unheard():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # else Python complains of it once more at exit
        sys.exit(128 + signal.SIGPIPE)
    finally:
        interrupts.end()


def run(argv: list[str]) -> None:
    """One command, `argv[0]` being the program; raises UserError or absl's flags.Error."""
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
    """What a long command says of its progress goes to stderr; before JAX and others set logging up."""
    logging.basicConfig(format="mllmsubj: %(message)s")
    logging.getLogger("mllmsubj").setLevel(logging.INFO)


def need_train_extra(what: str) -> None:
    """Raises UserError if the extra 'train' is not installed; `what` needs it."""
    if importlib.util.find_spec("grain") is None or importlib.util.find_spec("optax") is None:
        raise UserError(f"{what} the extra 'train': pip install 'mllmsubj[train]'")


def keep_compiled(workdir: Path) -> None:
    """Programs compiled from now on, here and in child processes, stay in a run's workdir, which outlives its machines,
    unless the user names another place, such as a bucket, in JAX_COMPILATION_CACHE_DIR. Before JAX starts."""
    if os.environ["JAX_COMPILATION_CACHE_DIR"] == str(_users_cache()):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(workdir.absolute() / "compiled")


def _users_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mllmsubj" / "jax"


def _set_up() -> None:
    """Compiled programs are kept between runs; warnings are one line. JAX reads its settings when it starts, later."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_users_cache()))
    if importlib.util.find_spec("libtpu") and not _has_accelerator():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # else libtpu, here to compile, complains of the TPU it misses
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
    # TensorFlow, which some data and the writer for TensorBoard load, greets with lines; nothing is computed with it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    gc.set_threshold(10_000)  # tracing makes objects by the million; looking for cycles 15 times as often takes a tenth
    warnings.showwarning = lambda message, *_, **__: print(f"mllmsubj: warning: {message}", file=sys.stderr)


def _unheard() -> bool:
    """Whether what read our output, such as `| head`, has seen enough."""
    output = select.poll()
    output.register(STDOUT, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def _has_accelerator() -> bool:
    """Whether there may be a TPU, by Google's number among the PCI devices, or an NVIDIA GPU; nothing is started."""
    vendors = {path.read_text().strip() for path in Path("/sys/bus/pci/devices").glob("*/vendor")}
    devices = ("/dev/accel0", "/dev/vfio/0", "/dev/nvidia0")  # as containers show them
    return bool({"0x1ae0", "0x10de"} & vendors) or any(map(os.path.exists, devices))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return (
        "usage: mllmsubj COMMAND [--flag=value …]\n\n"
        + "\n".join(lines)
        + "\n\nmllmsubj COMMAND --help lists its flags"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
