import pytest

from tests.engine.tiny_engine import TinyModel


@pytest.fixture(scope="session")
def tiny() -> TinyModel:
    return TinyModel()
