"""JSON files of models are read with a limit of their size."""

import os

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models import json_file
from kvflow_jax.models.json_file import read_json


def test_an_object_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, "é"]}')
    assert read_json(path) == {"a": [1, "é"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON, download it again"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'"x"', "is not a JSON object"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=message) as caught:
        read_json(path)
    assert len(str(caught.value)) < 1000


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "MAX_JSON_BYTES", 1 << 20)
    path = tmp_path / "config.json"
    path.write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(ModelLoadError, match="is larger than 1 MiB"):
        read_json(path)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelLoadError, match="is no regular file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "other.json")
