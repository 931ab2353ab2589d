"""The file of the learned order: what is written is read, and what is spoilt is set aside."""

import json
import logging
import os
import stat

import pytest

from kvflow_jax.control.learned_order_file import (
    SET_ASIDE,
    VERSION,
    LearnedOrderFile,
    LearnedOrderFileError,
)

LINES = ['["tenant","a"]', '["agent","plan",1.0]']


@pytest.fixture
def path(tmp_path):
    return tmp_path / "order.jsonl"


def write(path, lines=LINES, predictor="context-tree"):
    file = LearnedOrderFile(path, predictor)
    file.write_later(lines)
    file.close()
    assert not file.is_writing
    return file


def test_what_is_written_is_read(path):
    file = write(path)
    assert list(file.read()) == [json.loads(line) for line in LINES]
    assert os.listdir(path.parent) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    file.write_later(LINES[:1])
    file.close()
    assert list(file.read()) == [["tenant", "a"]]
    write(path, [])
    assert list(file.read()) == []


def test_a_missing_file_is_none(path):
    with pytest.raises(FileNotFoundError):
        list(LearnedOrderFile(path, "context-tree").read())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content[:-5], "torn"),
        (lambda content: content + b"[]\n", "torn"),
        (lambda content: content.replace(b"plan", b"plot"), "torn"),
        (lambda content: content[:30], "no file of a learned order"),
        (lambda content: b"", "no file of a learned order"),
        (lambda content: b"\xff\xfe\n", "no file of a learned order"),
        (lambda content: b"[" * 100_000, "no file of a learned order"),
        (lambda content: b"[]\n", "no file of a learned order"),
        (lambda content: content.replace(b'"version": %d' % VERSION, b'"version": 99'), "version"),
        (lambda content: content.replace(b"context-tree", b"first-order"), "predictor"),
    ],
)
def test_a_spoilt_file_is_told_apart(path, spoil, reason):
    file = write(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(LearnedOrderFileError, match=reason):
        list(file.read())


def test_a_file_that_is_too_large_or_none_is_not_read(path):
    write(path)
    with pytest.raises(OSError, match="larger"):
        list(LearnedOrderFile(path, "context-tree", max_bytes=-1000).read())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="regular"):
        list(LearnedOrderFile(path, "context-tree").read())


def test_a_file_is_set_aside_under_another_name(path, caplog):
    file = write(path)
    content = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        file.set_aside(ValueError("torn"))
    assert not path.exists()
    assert path.with_name(path.name + SET_ASIDE).read_bytes() == content
    assert len(caplog.records) == 1
    assert "torn" in caplog.text


def test_a_file_that_cannot_be_renamed_is_said(path, caplog):
    with caplog.at_level(logging.WARNING):
        LearnedOrderFile(path.parent / "none" / "order", "context-tree").set_aside(OSError("gone"))
    assert "nor rename it" in caplog.text


def test_a_failure_to_write_is_logged_once_and_leaves_the_old_file(path, caplog):
    file = write(path)
    before = path.read_bytes()
    temporary = path.with_name(path.name + ".tmp")
    temporary.mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            file.write_later([])
            file.close()
    assert len(caplog.records) == 1
    assert path.read_bytes() == before
    temporary.rmdir()
    file.write_later([])
    file.close()
    assert list(file.read()) == []
