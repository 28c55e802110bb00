import pytest

from tests.data.sources.pictures import write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Six examples as files; not to be written to."""
    folder = tmp_path_factory.mktemp("pairs")
    write_folder(folder)
    return folder


@pytest.fixture
def mine(tmp_path):
    """The same, to be written to."""
    write_folder(tmp_path / "pairs")
    return tmp_path / "pairs"
