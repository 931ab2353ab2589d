"""Files are read whole or not at all."""

import os
from pathlib import Path

import pytest

from kvflow_jax.models.regular_file import read_regular_file

MAX_BYTES = 1 << 20


def test_a_file_of_the_largest_size_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * MAX_BYTES)
    assert read_regular_file(path, MAX_BYTES) == b"x" * MAX_BYTES


def test_a_larger_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(OSError, match="it is larger than 1 MiB"):
        read_regular_file(path, MAX_BYTES)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(OSError, match="it is no regular file"):
            read_regular_file(path, MAX_BYTES)


def test_a_path_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_regular_file(tmp_path / "none", MAX_BYTES)
    with pytest.raises(OSError, match="null"):
        read_regular_file(Path("a\0b"), MAX_BYTES)
