"""Checks the files of a tokenizer before other libraries parse them: they come from strangers."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.chat_template_file import MAX_TEMPLATE_BYTES
from kvflow_jax.models.families.hf_fields import MAX_VOCABULARY, HfFields
from kvflow_jax.models.json_file import MAX_JSON_BYTES, read_json

# Each token is cut at each of its characters or bytes. SentencePiece's own limit is 16.
MAX_TOKEN_LEN = 512
_DAMAGED = "is truncated or damaged, download it again"

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_CONFIGS = ("config.json", "generation_config.json", "chat_template.json")
_TEMPLATE, _TEMPLATES = "chat_template.jinja", "additional_chat_templates"


def check_settings(folder: Path) -> None:
    """Check the files beside the vocabulary.

    Raises:
        ModelLoadError: naming the file that is no regular file, too large, or no JSON object.
    """
    for name in (*_SETTINGS, *_CONFIGS):
        check_file(folder / name, MAX_JSON_BYTES)
        # Those of _CONFIGS are read elsewhere.
        if name in _SETTINGS and (folder / name).exists():
            read_json(folder / name)
    for path in (folder / _TEMPLATE, *folder.glob(f"{_TEMPLATES}/*.jinja")):
        check_file(path, MAX_TEMPLATE_BYTES)


def check_file(path: Path, max_bytes: int) -> None:
    """Check that a file, if there is one, can be read and is not large.

    Raises:
        ModelLoadError: it is no regular file, or larger than ``max_bytes``.
    """
    if not os.path.lexists(path):
        return
    try:
        found = path.stat()
    except OSError as error:  # a broken link, or a loop of links
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    # Opening a FIFO would block until a process writes to it.
    if not stat.S_ISREG(found.st_mode):
        raise ModelLoadError(f"{path} cannot be read: it is no regular file")
    if found.st_size > max_bytes:
        raise ModelLoadError(f"{path} has {found.st_size} bytes, the limit is {max_bytes}")


def check_tekken(path: Path) -> None:
    """Check the numbers and the lengths in a tekken.json, from which others are computed.

    Raises:
        ModelLoadError: the file is no JSON object, or a number or a token is too large.
    """
    fields = HfFields(read_json(path))
    config = fields.nested("config")
    for name in ("default_num_special_tokens", "default_vocab_size", "num_vocab_tokens"):
        config.size(name, 1, limit=MAX_VOCABULARY)
    if problems := fields.problems.messages():
        raise ModelLoadError(f"{path} {_DAMAGED}: {'; '.join(problems)}")
    vocab = fields.values.get("vocab")
    for token in vocab if isinstance(vocab, list) else ():
        encoded = token.get("token_bytes") if isinstance(token, dict) else None
        _check_token(path, len(encoded) * 3 // 4 if isinstance(encoded, str) else 0)


def is_sentencepiece(path: Path) -> bool:
    """True if a tokenizer.model is of SentencePiece, False if of tiktoken.

    Raises:
        ModelLoadError: it is empty.
    """
    with path.open("rb") as file:
        first = file.read(1)
    if not first:
        raise ModelLoadError(f"{path} is empty, download it again")
    # The tag of its first field, a piece. Files of tiktoken begin with base64.
    return first == b"\n"


def check_sentencepiece(path: Path) -> None:
    """Check a tokenizer.model of SentencePiece.

    Raises:
        ModelLoadError: it cannot be parsed, or a token is too long.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise ModelLoadError(f"{path} {_DAMAGED}: {error}") from error
    for piece in model.pieces:
        _check_token(path, len(piece.piece))


def check_tiktoken(path: Path) -> None:
    """Check a tokenizer.model of tiktoken, whose lines have a token in base64 and its rank.

    Raises:
        ModelLoadError: a line is of another form, or a token is too long.
    """
    with path.open("rb") as file:
        for line in file:
            token, _, rank = line.strip().partition(b" ")
            if not rank.isdigit() or len(rank) > len(str(MAX_VOCABULARY)):
                raise ModelLoadError(f"{path} {_DAMAGED}: {line[:40]!r} is no token and its rank")
            _check_token(path, len(token) * 3 // 4)


def _check_token(path: Path, length: int) -> None:
    if length > MAX_TOKEN_LEN:
        raise ModelLoadError(f"{path}: a token has length {length}, the limit is {MAX_TOKEN_LEN}")
