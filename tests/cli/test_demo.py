"""`mllmsubj demo`: argument errors, and a full run with fewer steps."""

import pytest
from PIL import Image

from mllmsubj.cli import demo, main

pytestmark = pytest.mark.usefixtures("here")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workdir=file"], "workdir 'file' is a file; name a folder"),
        (["--reference=nowhere.jpg"], "nowhere.jpg"),
        (["--prompt= "], "no prompt"),
    ],
)
def test_demo_invalid_arguments(tmp_path, capsys, words, says):
    """The error comes before any file is written."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        main.main(["mllmsubj", "demo", *words])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_demo_report(tmp_path, monkeypatch, capsys):
    for name, value in dict(STEPS=(1, 1), BATCH_SIZE=8, EXAMPLES=3).items():
        monkeypatch.setattr(demo, name, value)
    main.main(["mllmsubj", "demo", "--workdir=out"])
    out = capsys.readouterr().out
    assert "trained here, 2 steps of 8" in out
    for name in ("report.html", "picture.png", "reference.png"):
        assert (tmp_path / "out" / name).is_file()
        assert f"out/{name}" in out
    with Image.open(tmp_path / "out" / "picture.png") as picture:
        assert picture.size == (128, 128)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img ") == 3 * 4
