"""transformers is imported without its advice, by any number of threads."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from kvflow_jax.models.quiet_imports import transformers


def test_transformers_is_imported_without_advisory_warnings(monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", raising=False)
    assert transformers().__name__ == "transformers"
    assert os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] == "1"


def test_a_setting_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", "0")
    transformers()
    assert os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] == "0"


def test_a_thread_that_waits_for_the_import_of_another_gets_all_names(monkeypatch, tmp_path):
    source = f"import sys, types; sys.modules[{__name__!r}].importing()\n"
    source += "sys.modules[__name__] = types.SimpleNamespace(AutoConfig=int)\n"
    (tmp_path / "transformers.py").write_text(source)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    has_begun, other = threading.Event(), []

    def importing():
        has_begun.set()
        # Until the other thread waits for the lock of this import.
        while not (other and waits_for_import(other[0])):
            pass

    def second():
        has_begun.wait()
        other.append(threading.get_ident())
        return transformers()

    monkeypatch.setattr(sys.modules[__name__], "importing", importing, raising=False)
    with ThreadPoolExecutor(2) as threads:
        for found in (threads.submit(transformers), threads.submit(second)):
            assert found.result().AutoConfig is int


def waits_for_import(thread):
    frame = sys._current_frames()[thread]
    return "importlib._bootstrap" in frame.f_code.co_filename
