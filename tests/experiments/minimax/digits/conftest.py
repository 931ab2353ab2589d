"""The digits, read once."""

import pytest

from experiments.minimax.digits import data


@pytest.fixture(scope="session")
def digits():
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -e '.[minimax]'")
    return data.load()
