"""Compiled programs and models that tests of several rooms share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine exceeds hypothesis's deadline of 200 ms; tests never assert on time.
settings.register_profile("kvflow", deadline=None)
settings.load_profile("kvflow")

COMPILED_BYTES = 1 << 30  # the least recently used programs go


def pytest_configure(config):
    """Share compiled programs among test files, processes and runs, in pytest's cache folder.

    Compiling takes most of the time of all tests. With a limit, JAX locks the folder.
    """
    import jax

    has_folder = config.pluginmanager.hasplugin("cacheprovider")
    if has_folder and jax.config.values["jax_compilation_cache_dir"] is None:
        folder = config.cache.mkdir("compiled-programs")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def tiny():
    """A tiny random model with its reference: see ``tests.support.tiny_engine.TinyModel``."""
    from tests.support.tiny_engine import TinyModel

    return TinyModel()


@pytest.fixture(scope="session")
def embedded_cache(tmp_path_factory) -> Path:
    """A cache folder for the embedded model; skips where its package is not installed."""
    from kvflow_jax.models.loading import embedded

    for package in (embedded.PACKAGE, "gguf"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: {embedded.INSTALL}")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def smollm2(embedded_cache):
    """The embedded model, converted once for all tests; scanned, which compiles fast."""
    from kvflow_jax.models.loading import embedded
    from kvflow_jax.models.loading.load import load_model
    from kvflow_jax.models.ops import XLA

    return load_model(embedded.NAME, cache_dir=embedded_cache, ops=XLA, progress=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Hugging Face folder of a tiny random model."""
    from tests.models import tiny

    return tiny.write_folder(tmp_path / "model")
