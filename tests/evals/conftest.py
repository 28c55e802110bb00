import jax
import pytest

from tests.evals.small_run import mesh_of, run_on, save


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Folder of the small checkpoint."""
    return save(tmp_path_factory.mktemp("evals") / "checkpoint")


@pytest.fixture(scope="session")
def restored(folder):
    """(setup, parameters) on one device."""
    with jax.set_mesh(mesh_of(1)):
        return run_on(folder, 1)
