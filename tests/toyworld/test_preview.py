import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mllmsubj.cli import main
from mllmsubj.toyworld import Split, example


def preview(*flags):
    main.main(["mllmsubj", "data", *flags])


def test_preview_sheet(tmp_path, capsys):
    output = tmp_path / "new" / "sheet.png"
    preview("preview", f"--output={output}", "--split=test", "--count=3", "--size=64", "--seed=5")
    assert [path.name for path in output.parent.iterdir()] == ["sheet.png"]
    assert str(output) in capsys.readouterr().out
    page = np.asarray(Image.open(output))
    first = example(Split.TEST, 0, 5)
    assert (page[12:76, 12:76] == first.reference.render(64)).all()
    right = 12 + 64 + 160 + 2 * 12
    assert (page[12:76, right : right + 64] == first.target.render(64)).all()
    between = page[12:76, 88 : right - 12]
    assert (between.max(-1) < 120).any()  # dark pixels of the prompt's text
    assert page.shape == (2 * 76 + 12, 2 * (64 * 2 + 160 + 36) + 12, 3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "needs an action"),
        (["previw"], "did you mean 'preview'"),
        (["--output=a.png", "preview"], "needs an action first"),
        (["preview"], "--output=FILE.png"),
        (["preview", "--output=sheet.jpg"], "not a .png file"),
        (["preview", "--output=/dev/null/sheet.png"], "not a folder"),
        (["preview", "--output=a.png", "--size=32"], "size"),
        (["preview", "--output=a.png", "--count=0"], "count"),
        (["preview", "--output=a.png", "--seed=-1"], "seed"),
        (["preview", "--output=a.png", "--split=val"], "split"),
        (["preview", "--output=a.png", "--splti=test"], "did you mean 'split'"),
        (["preview", "--output=a.png", "more"], "unexpected argument 'more'"),
    ],
)
def test_preview_invalid_arguments(tmp_path, monkeypatch, capsys, flags, words):
    """Invalid arguments exit with status 2 and a one-line error, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        preview(*flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_preview_without_jax(tmp_path):
    """The preview does not import JAX."""
    code = (
        "import sys; from mllmsubj.cli import main; "
        f"main.run(['mllmsubj', 'data', 'preview', '--output={tmp_path}/a.png', '--count=1', '--size=64']); "
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
