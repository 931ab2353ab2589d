"""Files of a tokenizer that are damaged or of another kind are named in one line."""

import base64
import json
import os

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models import tokenizer_checks
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.models.tokenizer_checks import (
    check_file,
    check_sentencepiece,
    check_settings,
    check_tekken,
    check_tiktoken,
    is_sentencepiece,
)
from tests.models import tiny

# A piece "<unk>" of score 0 and type UNKNOWN.
PIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
SETTINGS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json"),
    *("generation_config.json", "chat_template.json", "chat_template.jinja"),
)
FORMS = ("tokenizer.json", "tekken.json", "tokenizer.model", "vocab.json", "merges.txt")
KINDS = {
    "folder": lambda path: path.mkdir(),
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "broken link": lambda path: path.symlink_to(path.with_name("gone")),
}


def problem(check, *args):
    with pytest.raises(ModelLoadError) as caught:
        check(*args)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*SETTINGS, *FORMS])
def test_a_file_of_another_kind_is_neither_opened_nor_passed_over(name, kind, tmp_path):
    if name in SETTINGS:
        tiny.byte_level_tokenizer().save_pretrained(tmp_path)
    if name in ("vocab.json", "merges.txt"):
        for other in ("vocab.json", "merges.txt"):
            (tmp_path / other).write_text("{}")
    (tmp_path / name).unlink(missing_ok=True)
    KINDS[kind](tmp_path / name)
    assert f"{tmp_path / name} cannot be read: " in problem(Tokenizer.from_folder, tmp_path)


def test_links_to_files_are_followed(tmp_path):
    """As in the cache of a Hub's models."""
    tiny.byte_level_tokenizer().save_pretrained(tmp_path / "blobs")
    (tmp_path / "model").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "model" / path.name).symlink_to(path)
    assert Tokenizer.from_folder(tmp_path / "model").encode("the") == [259]


@pytest.mark.parametrize("name", SETTINGS[:3])
@pytest.mark.parametrize("text", ["", "[]", "{", "\0" * 100, "[" * 100_000])
def test_settings_are_json_objects(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert str(tmp_path / name) in problem(check_settings, tmp_path)


def test_every_named_template_is_checked(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    check_settings(tmp_path)
    os.mkfifo(tmp_path / "additional_chat_templates" / "tool_use.jinja")
    assert "tool_use.jinja cannot be read: it is no regular file" in problem(
        check_settings, tmp_path
    )


def test_a_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b" " * 100)
    check_file(path, 100)
    check_file(tmp_path / "none", 100)
    assert "has 100 bytes, the limit is 99" in problem(check_file, path, 99)


def tekken(**config):
    return {"config": {"default_num_special_tokens": 4, **config}, "vocab": []}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (tekken(default_num_special_tokens=10**30), "above the limit of 16777216"),
        (tekken(default_vocab_size=-1), "default_vocab_size is -1"),
        (tekken(num_vocab_tokens="x"), "num_vocab_tokens is 'x'"),
        ({"config": [1]}, "config is [1]"),
        ({"vocab": [{"token_bytes": "A" * 2000}]}, "a token has length 1500"),
    ],
)
def test_numbers_of_a_tekken_are_bounded(content, part, tmp_path):
    """From them placeholders are made for each special token, and all splits of each token."""
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(content))
    assert part in problem(check_tekken, path)


def test_a_tekken_of_other_fields_is_left_to_its_reader(tmp_path):
    path = tmp_path / "tekken.json"
    for content in (tekken(), {}, {"vocab": [7, {}, {"token_bytes": 7}]}, {"vocab": "x"}):
        path.write_text(json.dumps(content))
        check_tekken(path)


def test_a_tokenizer_model_is_of_one_of_two_libraries(tmp_path):
    path = tmp_path / "tokenizer.model"
    for content, expected in ((PIECE, True), (b"YQ== 0\n", False)):
        path.write_bytes(content)
        assert is_sentencepiece(path) == expected
    path.write_bytes(b"")
    assert "is empty" in problem(is_sentencepiece, path)


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (b"YQ== 0\nYg== x\n", "b'Yg== x\\n' is no token and its rank"),
        (b"YQ==\n", "is no token and its rank"),
        (b"\x00" * 5000, "is no token and its rank"),
        (b"YQ== " + b"9" * 30, "is no token and its rank"),
        (b"A" * 2000 + b" 0\n", "a token has length 1500, the limit is 512"),
    ],
)
def test_lines_of_tiktoken_are_tokens_and_ranks(lines, part, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"YQ== 0\n")
    check_tiktoken(path)
    path.write_bytes(lines)
    assert part in problem(check_tiktoken, path)


def test_a_damaged_sentencepiece_model_is_named(tmp_path):
    pytest.importorskip("sentencepiece")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(PIECE)
    check_sentencepiece(path)
    path.write_bytes(PIECE[:-3])
    assert "tokenizer.model is truncated or damaged" in problem(check_sentencepiece, path)


def test_a_long_piece_of_sentencepiece_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("sentencepiece")
    monkeypatch.setattr(tokenizer_checks, "MAX_TOKEN_LEN", 4)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(PIECE)
    assert "a token has length 5, the limit is 4" in problem(check_sentencepiece, path)


def test_tokens_of_tiktoken_are_measured_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_checks, "MAX_TOKEN_LEN", 9)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(base64.b64encode(b"x" * 9) + b" 0\n")
    check_tiktoken(path)
    path.write_bytes(base64.b64encode(b"x" * 12) + b" 0\n")
    assert "a token has length 12" in problem(check_tiktoken, path)
