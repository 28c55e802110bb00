import pytest

from mllmsubj.io import replacing, replacing_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def half_written(replaced):
    """A writer that breaks off."""
    with replaced as partial:
        (partial / "half" if partial.is_dir() else partial).write_text("ha")
        raise OSError("full")


def test_a_file_is_replaced_by_a_whole_one(tmp_path):
    path = tmp_path / "file"
    for text in ("first", "second"):
        with replacing(path) as partial:
            partial.write_text(text)
        assert path.read_text() == text
        assert names(tmp_path) == ["file"]


def test_a_file_that_breaks_off_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("whole")
    with pytest.raises(OSError, match="full"):
        half_written(replacing(path))
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["file"]


def test_a_folder_likewise(tmp_path):
    folder = tmp_path / "folder"
    with replacing_folder(folder) as partial:
        (partial / "first").touch()
    with pytest.raises(OSError, match="full"):
        half_written(replacing_folder(folder))
    assert (names(folder), names(tmp_path)) == (["first"], ["folder"])
    with replacing_folder(folder) as partial:
        (partial / "second").touch()
    assert (names(folder), names(tmp_path)) == (["second"], ["folder"])
