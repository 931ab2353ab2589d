import importlib.util

import pytest

from kvflow_jax.models import embedded
from kvflow_jax.models.loading import load_model
from kvflow_jax.models.ops import XLA
from tests.models import tiny


@pytest.fixture(scope="session")
def embedded_cache(tmp_path_factory):
    """A cache folder for the embedded model; skips where its package is not installed."""
    for package in (embedded.PACKAGE, "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: {embedded.INSTALL}")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def smollm2(embedded_cache):
    """The embedded model, converted once for all tests; scanned, which compiles fast."""
    return load_model(embedded.NAME, cache_dir=embedded_cache, ops=XLA, progress=False)


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder of a tiny random model."""
    return tiny.write_folder(tmp_path / "model")
