"""transformers is imported without its advice."""

import os

from kvflow_jax.models.quiet_imports import transformers


def test_transformers_is_imported_without_advisory_warnings(monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", raising=False)
    assert transformers().__name__ == "transformers"
    assert os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] == "1"


def test_a_setting_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", "0")
    transformers()
    assert os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] == "0"
