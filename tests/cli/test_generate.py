"""`mllmsubj generate`, in this process and in subprocesses."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import skimage.data
from PIL import Image

from mllmsubj.cli import main
from mllmsubj.cli.generate import output_paths
from mllmsubj.errors import UserError
from mllmsubj.inference.pipeline import Pipeline
from tests.environment import environment

HEARS_SIGINT = ["env", "--default-signal=INT", sys.executable]
"""Python with the default SIGINT handler; processes of a shell's background job ignore SIGINT otherwise."""
SECONDS = 5.0
"""Delay before an interrupt; by then, the command starts JAX, reads parameters or generates."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a photograph, and files that are not images."""
    folder = tmp_path_factory.mktemp("cli")
    Image.fromarray(skimage.data.chelsea()).save(folder / "cat.jpg")
    Image.new("RGB", (900, 10)).save(folder / "thin.png")
    (folder / "text.png").write_text("not a picture")
    (folder / "folder.png").mkdir()
    (folder / "file").touch()
    return folder


def generate(**changes):
    """Arguments of a valid `mllmsubj generate`, changed by `changes`; None omits a flag."""
    flags = dict(reference="cat.jpg", prompt="a cat on the moon", output="out.png") | changes
    return ["generate", *(f"--{name}={value}" for name, value in flags.items() if value is not None)]


def command(folder, *args):
    """Starts a process as a user does, with one device and its own compilation cache."""
    env = environment(XDG_CACHE_HOME=str(folder / "cache"))
    del env["JAX_COMPILATION_CACHE_DIR"]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([*HEARS_SIGINT, "-m", "mllmsubj", *args], cwd=folder, env=env, **pipes)


def assert_one_line(out, err, says):
    assert out == ""
    assert err.startswith("mllmsubj: error: ")
    assert err.count("\n") == 1
    for word in [says] if isinstance(says, str) else says:
        assert word in err


EARLY = {  # name -> (arguments, text of the error); found before JAX starts
    "no prompt": (generate(prompt=None), ["no prompt", "--prompt"]),
    "empty prompt": (generate(prompt="  "), "no prompt"),
    "no output": (generate(output=None), ["no output", "--output"]),
    "no png": (generate(output="out.jpg"), ["'out.jpg'", "not a .png"]),
    "output a folder": (generate(output="folder.png"), ["'folder.png'", "folder"]),
    "output in a file": (generate(output="file/out.png"), ["file/out.png", "not a folder"]),
    "unknown flag": ([*generate(), "--stepz=3"], ["--stepz", "'steps'"]),
    "unknown command": (["generat"], ["'generat'", "'generate'"]),
    "no pictures": (generate(num_images=0), ["num_images", "0"]),
    "seed": (generate(seed=2**32), ["seed", "4294967296"]),
    "words": ([*generate(), "cat.jpg"], "unexpected argument 'cat.jpg'"),
    "bad integer": (generate(steps="many"), ["steps", "'many'"]),
    "bad number": (generate(tau1="high"), ["tau1", "high"]),
    "no value": ([*generate(), "--seed"], "seed"),
}
REFERENCES = {
    "missing": (generate(reference="nowhere.jpg"), ["nowhere.jpg", "not there"]),
    "unreadable": (generate(reference="text.png"), ["text.png", "no picture"]),
}
LATE = {
    "no reference": (generate(reference=None), ["no reference image", "--reference"]),
    "folder": (generate(reference="folder.png"), ["folder.png", "no file"]),
    "thin": (generate(reference="thin.png"), "900x10"),
    "too many": ([*generate(), *["--reference=cat.jpg"] * 4], ["5 reference images", "at most 4"]),
    "height": (generate(height=100), ["height is 100", "multiple of 16", "96"]),
    "taus": (generate(tau1=0.2, tau2=0.5), "tau1=0.2, tau2=0.5"),
    "steps": (generate(steps=0), "steps is 0"),
    "guidance": (generate(guidance=-1), "guidance is -1"),
    "text guidance": (generate(text_guidance=-1), "text_guidance is -1"),
    "frozen_dtype": (generate(frozen_dtype="int4"), ["model.frozen_dtype", "'int4'", "'auto' or 'int8'"]),
    "long prompt": (generate(prompt="z" * 5000), "at most 512"),
    "broken prompt": (generate(prompt="a\udcff"), "not valid UTF-8"),
    "no checkpoint": (generate(checkpoint="folder.png"), ["'folder.png'", "no checkpoint"]),
    "no such checkpoint": (generate(checkpoint="nowhere"), ["'nowhere'", "no checkpoint"]),
    "unknown key": ([*generate(), "--config.sampling.stepz=3"], ["sampling.stepz", "'steps'"]),
    "unknown part": ([*generate(), "--config.sampling.steps.x=3"], "sampling.steps.x"),
    "mistyped key": ([*generate(), "--config.sampling.steps=abc"], ["sampling.steps", "abc"]),
    "key of no use": ([*generate(), "--config.prompt.pad_to_multiple=0"], ["prompt.pad_to_multiple", "at least 1"]),
    "key that disagrees": ([*generate(), "--config.model.vae.latent_channels=7"], "make them equal"),
    "key of several": ([*generate(), "--config.reference.mean=(0.5, 0.5, 'a')"], "reference.mean"),
}


@pytest.mark.parametrize("case", [*EARLY, *REFERENCES])
def test_generate_invalid_arguments_subprocess(folder, case):
    args, says = (EARLY | REFERENCES)[case]
    before = sorted(folder.iterdir())
    process = command(folder, *args)
    assert_one_line(*process.communicate(timeout=120), says)
    assert process.returncode == 2
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_broken_pipe(folder, unbuffered):
    """The command exits as on SIGPIPE, without a message; `mllmsubj --help | head -0` is such a case."""
    ours, its = os.pipe()
    os.close(ours)
    with os.fdopen(its, "w") as output:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        program = [sys.executable, "-m", "mllmsubj", "--help"]
        done = subprocess.run(program, cwd=folder, stdout=output, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.stderr, done.returncode) == ("", 128 + signal.SIGPIPE)


def test_help_closed_stdout(folder):
    """The command exits with 0 without `sys.stdout`, as in `mllmsubj --help >&-`."""
    program = ["sh", "-c", 'exec "$0" -m mllmsubj --help >&-', sys.executable]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("case", EARLY)
def test_generate_invalid_arguments_without_jax(folder, case):
    """These errors come before JAX is imported; its import fails in this process."""
    code = (
        "import sys; sys.modules['jax'] = None; from mllmsubj.cli.main import main; main(['mllmsubj', *sys.argv[1:]])"
    )
    done = subprocess.run([sys.executable, "-c", code, *EARLY[case][0]], cwd=folder, capture_output=True, text=True)
    assert_one_line(done.stdout, done.stderr, EARLY[case][1])


@pytest.mark.parametrize("case", LATE)
def test_generate_invalid_request(folder, case, monkeypatch, capsys):
    """These errors come before parameters are read, and no file is written."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Pipeline, "load", lambda *_: pytest.fail("the checkpoint was loaded"))
    monkeypatch.setattr(main, "_set_up", lambda: None)
    args, says = LATE[case]
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as error:
        main.main(["mllmsubj", *args])
    assert error.value.code == 2
    assert_one_line(*capsys.readouterr(), says)
    assert sorted(folder.iterdir()) == before


def test_generate_flags_and_overrides(folder, monkeypatch, capsys):
    """The pipeline is loaded with the config that flags and `--config.` overrides give."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(main, "_set_up", lambda: None)
    loaded = []

    def load(checkpoint, config, loras):
        loaded.append((checkpoint, config))
        raise UserError("far enough")

    monkeypatch.setattr(Pipeline, "load", load)
    overrides = ["--config.sampling.steps=9", "--config.reference.std=(0.5, 0.5, 0.25)"]
    with pytest.raises(SystemExit):
        main.main(["mllmsubj", *generate(steps=5, tau1=1, frozen_dtype="int8"), "--offload", *overrides])
    assert_one_line(*capsys.readouterr(), "far enough")
    [(checkpoint, config)] = loaded
    assert checkpoint == "tiny"
    assert (config.sampling.steps, config.sampling.tau1, config.sampling.tau2) == (5, 1.0, 0.59)
    assert tuple(config.reference.std) == (0.5, 0.5, 0.25)
    assert (config.model.frozen_dtype, config.compute.offload) == ("int8", True)


@pytest.mark.parametrize("args", [[], ["--help"], ["help"], ["generate", "--help"], ["bench", "-h"]])
def test_help_output(args, capsys):
    main.main(["mllmsubj", *args])
    out, err = capsys.readouterr()
    assert err == ""
    assert ("--reference" if "generate" in args else "mllmsubj") in out


def test_help_subprocess(folder):
    process = command(folder, "generate", "--help")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "--tau1" in out


def test_output_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [str(path) for path in output_paths("new/a.b.PNG", 1)] == ["new/a.b.PNG"]
    assert [str(path) for path in output_paths("a.b.png", 2)] == ["a.b-0.png", "a.b-1.png"]
    assert output_paths("~/a.png", 1) == [tmp_path / "a.png"]


INTERRUPTED_IN_A_FINALIZER = """
import os, signal, sys, time
from mllmsubj.cli import main

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # where the handler runs, whose exception Python ignores

def run(argv):
    Finalized()
    time.sleep(60)

main.run = run
main.main(["mllmsubj"])
"""


def test_interrupt_in_finalizer():
    """An interrupt is raised again after Python has ignored it in a finalizer."""
    done = subprocess.run([*HEARS_SIGINT, "-c", INTERRUPTED_IN_A_FINALIZER], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("", "mllmsubj: interrupted\n", 130)


def test_generate_two_images_then_interrupt(folder):
    """A process generates two images; SIGINT stops a second process, which uses the compilation cache."""
    unguided = dict(text_guidance=1, reference_guidance=1)  # a third of the program
    request = generate(output="new/moon.png", num_images=2, steps=2, height=64, width=80, seed=5, **unguided)
    process = command(folder, *request)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.split() == ["new/moon-0.png", "new/moon-1.png"]
    assert err == ""
    pictures = []
    for i, name in enumerate(out.split()):
        with Image.open(folder / name) as image:
            pictures.append(np.asarray(image))
            metadata = json.loads(image.text["mllmsubj"])
        want = dict(prompt="a cat on the moon", seed=5, index=i, steps=2, height=64, width=80, references=["cat.jpg"])
        assert metadata.items() >= want.items()
        assert pictures[i].shape == (64, 80, 3)
    assert (pictures[0] != pictures[1]).any()
    assert sorted(path.name for path in (folder / "new").iterdir()) == ["moon-0.png", "moon-1.png"]
    assert any((folder / "cache" / "mllmsubj" / "jax").iterdir())

    process = command(folder, *generate(steps=1000, **unguided))
    time.sleep(SECONDS)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (out, err, process.returncode) == ("", "mllmsubj: interrupted\n", 130)
    assert not (folder / "out.png").exists()
