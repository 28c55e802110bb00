import pytest

from mllmsubj.toyworld import Split, example


@pytest.fixture(scope="session")
def drawn():
    """The first examples of each split."""
    return {split: [example(split, i, seed=3) for i in range(1200)] for split in Split}
