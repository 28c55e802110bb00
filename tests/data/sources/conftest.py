import pytest

from tests.data.sources.pictures import write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder of six examples as files, which tests must not change."""
    folder = tmp_path_factory.mktemp("pairs")
    write_folder(folder)
    return folder


@pytest.fixture
def mine(tmp_path):
    """A copy of `folder` that a test may change."""
    write_folder(tmp_path / "pairs")
    return tmp_path / "pairs"
