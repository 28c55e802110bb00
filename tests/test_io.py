"""`mllmsubj.io`: files and folders that are replaced atomically."""

import pytest

from mllmsubj.io import replacing, replacing_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def half_written(replaced):
    """Writes half of a file and raises an error."""
    with replaced as partial:
        (partial / "half" if partial.is_dir() else partial).write_text("ha")
        raise OSError("full")


def test_replacing_file(tmp_path):
    path = tmp_path / "file"
    for text in ("first", "second"):
        with replacing(path) as partial:
            partial.write_text(text)
        assert path.read_text() == text
        assert names(tmp_path) == ["file"]


def test_replacing_file_failure(tmp_path):
    """The existing file is left as it was."""
    path = tmp_path / "file"
    path.write_text("whole")
    with pytest.raises(OSError, match="full"):
        half_written(replacing(path))
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["file"]


def test_replacing_folder(tmp_path):
    """A folder is replaced as a whole; a failure leaves the existing one as it was."""
    folder = tmp_path / "folder"
    with replacing_folder(folder) as partial:
        (partial / "first").touch()
    with pytest.raises(OSError, match="full"):
        half_written(replacing_folder(folder))
    assert (names(folder), names(tmp_path)) == (["first"], ["folder"])
    with replacing_folder(folder) as partial:
        (partial / "second").touch()
    assert (names(folder), names(tmp_path)) == (["second"], ["folder"])
