"""The structure of a JSON text, counted before any object is built from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvflow_jax.serve.errors import ApiError

MAX_DEPTH = 200  # that of the parser, pydantic_core.from_json
MIN_MEMORY_BYTES = 32 * 2**20
MAX_GROWTH = 4  # memory over the size of the body

# Memory of what CPython builds, on 64 bits, B: a list or dict with its header for the garbage
# collector and its table, the header of a string or number with its place in a container.
_LIST_BYTES, _DICT_BYTES, _VALUE_BYTES = 88, 264, 64
_NO_POSITIONS, _NO_KINDS = np.empty(0, np.int64), np.empty(0, np.uint8)
_SCANNED_BYTES = 1 << 18  # at a time; the arrays of a piece stay in the CPU's cache
# Keeps quotes and the characters between the values, and makes any other 0.
_STRUCTURAL = bytes(code if code in b'[]{},:"' else 0 for code in range(256))
# The first half of a character that has two escapes, such as an emoji.
_SURROGATE = re.compile(rb"\\u[dD][89abAB]")


class Limits(NamedTuple):
    """How many values a body may have.

    Attributes:
        max_containers: lists and objects.
        max_values: all values, those in lists and objects included.
    """

    max_containers: int
    max_values: int


@dataclass(frozen=True, slots=True)
class Structure:
    """The characters between the values of a JSON text, outside its strings.

    Attributes:
        at: their positions, i64[n].
        kinds: the characters, u8[n]: one of ``[]{},:``.
        depths: how many containers enclose each; a bracket is within its own, i64[n].
    """

    at: np.ndarray
    kinds: np.ndarray
    depths: np.ndarray


def has_few_values(body: bytes | bytearray, limits: Limits) -> bool:
    """Return whether a body is surely within the limits, at a fraction of the cost of a scan.

    Characters in strings are counted like those between values.
    """
    if len(body) <= limits.max_containers:
        return True
    num_containers = body.count(b"[") + body.count(b"{")
    return (
        num_containers <= limits.max_containers
        and num_containers + body.count(b",") <= limits.max_values
    )


def scan(body: bytes | bytearray, limits: Limits) -> Structure:
    """Return the structure of a JSON text; takes some nanoseconds per byte, mostly without the GIL.

    The text need not be valid; its parser finds out.

    Raises:
        ApiError: 413, if it has more values than the limits, is nested more deeply than
            ``MAX_DEPTH``, or would need more memory than ``MAX_GROWTH`` times its size.
    """
    found_at, found_kinds = [_NO_POSITIONS], [_NO_KINDS]
    counts = np.zeros(128, np.int64)  # by kind
    num_containers = num_values = num_escapes = num_chars = char_bytes = 0
    is_inside, start, tail = False, 0, b""
    while start < len(body):
        piece = bytes(body[start : start + _SCANNED_BYTES])
        # A pair of a backslash and what it escapes is not parted.
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2 and start + len(piece) < len(body):
            piece = piece[:-1]
        # Backslashes are only in strings, so runs of them part into pairs from the left.
        piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        found = np.frombuffer(piece.translate(_STRUCTURAL), np.uint8)
        at = np.flatnonzero(found)
        kinds = found[at]
        # Odd from an opening quote on, up to before the closing one; wraps around at 256.
        num_quotes = np.cumsum(kinds == ord('"'), dtype=np.uint8)
        is_kept = ((num_quotes & 1) == is_inside) & (kinds != ord('"'))
        found_at.append(at[is_kept] + start)
        found_kinds.append(kinds[is_kept])
        is_inside ^= bool(num_quotes.size and num_quotes[-1] & 1)
        start += len(piece)
        num_escapes += piece.count(b"\\u")
        codes = np.frombuffer(piece, np.uint8)
        highest = int(codes.max())
        # An escape may lie across two pieces.
        char_bytes = max(char_bytes, _bytes_per_char(tail + piece, highest))
        tail = piece[-3:]
        num_chars += len(piece)
        if highest >= 0x80:
            num_chars -= int(np.count_nonzero((codes & 0xC0) == 0x80))
        counts += np.bincount(found_kinds[-1], minlength=128)
        num_containers, num_values = _check_counts(counts, limits)
    structure = _structure(np.concatenate(found_at), np.concatenate(found_kinds))
    if structure.depths.max(initial=0) > MAX_DEPTH:
        raise _too_complex(f"lists and objects nested more than {MAX_DEPTH} deep")
    num_dicts = int(np.count_nonzero(structure.kinds == ord("{")))
    # An escape such as \u4e2d stands for one character, or half of one.
    text_bytes = (num_chars - 5 * num_escapes) * char_bytes
    memory_bytes = (
        len(body)
        + text_bytes
        + (num_containers - num_dicts) * _LIST_BYTES
        + num_dicts * _DICT_BYTES
        + (num_values + int(np.count_nonzero(structure.kinds == ord(":")))) * _VALUE_BYTES
    )
    if memory_bytes > max(MAX_GROWTH * len(body), MIN_MEMORY_BYTES):
        raise _too_complex(f"values of {memory_bytes / 2**20:.0f} MiB in memory")
    return structure


def check_texts(texts: Sequence[str], limits: Limits) -> None:
    """Check JSON texts that strings of a body contain, all of them together.

    Raises:
        ApiError: 413, as ``scan``.
    """
    num_containers = sum(text.count("[") + text.count("{") for text in texts)
    num_commas = sum(text.count(",") for text in texts)
    if num_containers <= limits.max_containers and num_containers + num_commas <= limits.max_values:
        return
    # Some of them are in strings.
    counts = np.zeros(128, np.int64)  # by kind
    for text in texts:
        counts += np.bincount(scan(text.encode(errors="replace"), limits).kinds, minlength=128)
        _check_counts(counts, limits)


def _structure(at: np.ndarray, kinds: np.ndarray) -> Structure:
    is_closing = (kinds == ord("]")) | (kinds == ord("}"))
    is_opening = (kinds == ord("[")) | (kinds == ord("{"))
    depths = np.cumsum(is_opening.astype(np.int64) - is_closing) + is_closing
    return Structure(at, kinds, depths)


def _bytes_per_char(text: bytes, highest: int) -> int:
    """Return the bytes that CPython keeps for each character of a string with this UTF-8 text."""
    if highest >= 0xF0 or _SURROGATE.search(text):
        return 4
    return 2 if highest >= 0xC4 or b"\\u" in text else 1


def _check_counts(counts: np.ndarray, limits: Limits) -> tuple[int, int]:
    """Return the numbers of containers and of values; raise if they exceed the limits.

    Args:
        counts: of the structural characters by code, i64[128].
    """
    num_containers = int(counts[ord("[")] + counts[ord("{")])
    num_values = num_containers + int(counts[ord(",")])
    if num_containers > limits.max_containers:
        raise _too_complex(f"more than {limits.max_containers} lists and objects")
    if num_values > limits.max_values:
        raise _too_complex(f"more than {limits.max_values} values")
    return num_containers, num_values


def _too_complex(what: str) -> ApiError:
    return ApiError(413, f"the body has {what}; split the request", code="body_too_complex")
