"""How the command line reports a user's mistake and a bug, and how it reads the names of flags."""

import pytest

from mllmsubj.cli import main
from mllmsubj.errors import UserError


def failing(monkeypatch, error):
    def run(argv):
        raise error from KeyError("cause")

    monkeypatch.setattr(main, "run", run)


@pytest.mark.parametrize(("argv", "variable", "traceback"), [([], "", False), (["--debug"], "", True), ([], "1", True)])
def test_main_user_error(monkeypatch, capsys, argv, variable, traceback):
    failing(monkeypatch, UserError("key x is 1;\nuse 2"))
    monkeypatch.setenv("MLLMSUBJ_DEBUG", variable)
    with pytest.raises(SystemExit) as stopped:
        main.main(["mllmsubj", "train", *argv])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "mllmsubj: error: key x is 1; use 2"
    assert (len(lines) > 1) == traceback
    assert ("KeyError: 'cause'" in lines) == traceback


def test_main_bug(monkeypatch, capsys):
    failing(monkeypatch, RuntimeError("something\nelse"))
    with pytest.raises(SystemExit) as stopped:
        main.main(["mllmsubj", "train"])
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert "RuntimeError: something" in lines
    assert lines[-1].startswith("mllmsubj: bug: RuntimeError: something else; please report it")


def test_flags_hyphens():
    argv = ["mllmsubj", "generate", "--num-images=2", "--a-b", "--prompt=a-b", "-x-y", "--debug", "--", "--c-d"]
    words = ["mllmsubj", "generate", "--num_images=2", "--a_b", "--prompt=a-b", "-x-y", "--", "--c-d"]
    assert main._flags(argv) == (words, True)
