"""Parsing and writing of large JSON texts in slices, so that other threads run in between.

The parser, ``pydantic_core.from_json``, holds the GIL until it has read its whole text: up to 0.5 s
for 32 MiB. ``json.dumps`` holds it until it has written all of one, some 60 ns for a byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from pydantic_core import from_json

from kvflow_jax.serve.json_structure import Structure

SLICE_BYTES = 1 << 18  # of a text that is parsed
SLICE_ITEMS = 64  # of a list that is written
# What must not be cut: an escape, both halves of a character that has two, a character in UTF-8.
_TOKEN = re.compile(
    rb"\\u[dD][89abAB]..\\u....|\\u....|\\.|[^\\\x80-\xff]|[\xc0-\xff][\x80-\xbf]*|[\x80-\xbf]",
    re.S,
)
_LONGEST_TOKEN = 12
# Half of a character that has two escapes, such as an emoji, without its other half.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_REPLACEMENT = rb"\ufffd"
_BLANKS = b" \t\n\r"


def _ignore() -> None:
    pass


def parse(text: bytes, on_mended: Callable[[], object] = _ignore) -> Any:
    """Return the value of a short JSON text.

    A lone surrogate is read as U+FFFD: clients in JavaScript cut strings within an emoji, and then
    send what is left of it in every later turn. Rejects NaN and Infinity, invalid UTF-8, and more
    than 200 levels.

    Args:
        on_mended: called if there is a lone surrogate.

    Raises:
        ValueError: it is no JSON text.
    """
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        if (mended := _without_lone_surrogates(text)) == text:
            raise
        value = from_json(mended, allow_inf_nan=False)
    on_mended()
    return value


def parse_in_slices(
    text: bytes | bytearray, structure: Structure, on_mended: Callable[[], object] = _ignore
) -> Any:
    """Return the value of a JSON text, as ``parse`` does.

    Args:
        structure: that of the text, from ``json_structure.scan``.
        on_mended: called for each slice in which there is a lone surrogate.
    """
    return _Reader(text, structure, on_mended).read(0, len(text), 0, len(structure.at), 1)


def dump(value: Any, *, ensure_ascii: bool = False) -> bytes:
    """Return the JSON text of a value in UTF-8, without blanks.

    Args:
        ensure_ascii: escape all characters that are not ASCII.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    dumps = partial(json.dumps, ensure_ascii=ensure_ascii, allow_nan=False, separators=(",", ":"))
    return "".join(_slices(value, dumps)).encode()


def _without_lone_surrogates(text: bytes) -> bytes:
    # Backslashes are only in strings, so runs of them part into pairs from the left: what follows
    # such a pair is no escape.
    escapes = text.replace(rb"\\", b"__")
    mended = bytearray(text)
    for found in _LONE_SURROGATE.finditer(escapes):
        mended[found.start() : found.end()] = _REPLACEMENT
    return bytes(mended)


def _slices(value: Any, dumps: Callable[[Any], str], is_cut: bool = True) -> Iterator[str]:
    """Yield the JSON text of a value.

    Args:
        is_cut: whether a long list is dumped in slices, and not item by item.
    """
    if isinstance(value, dict):
        yield "{"
        for i, (key, item) in enumerate(value.items()):
            yield f"{',' if i else ''}{dumps(key)}:"
            # Each choice may be large; what is in it is in dicts and long lists.
            yield from _slices(item, dumps, is_cut=key != "choices")
        yield "}"
    elif isinstance(value, list):
        yield "["
        if is_cut and len(value) > SLICE_ITEMS:
            for start in range(0, len(value), SLICE_ITEMS):
                yield f"{',' if start else ''}{dumps(value[start : start + SLICE_ITEMS])[1:-1]}"
        else:
            for i, item in enumerate(value):
                yield "," if i else ""
                yield from _slices(item, dumps)
        yield "]"
    else:
        yield dumps(value)


class _Reader:
    def __init__(
        self, text: bytes | bytearray, structure: Structure, on_mended: Callable[[], object]
    ) -> None:
        self._text, self._structure = memoryview(text), structure
        self._parse = partial(parse, on_mended=on_mended)

    def read(self, begin: int, end: int, low: int, high: int, depth: int) -> Any:
        """Return the value of ``text[begin:end]``, whose structure is ``at[low:high]``.

        Args:
            depth: of the containers within the text, if the value is one.
        """
        if end - begin <= SLICE_BYTES:
            return self._parse(bytes(self._text[begin:end]))
        begin, end = self._strip(begin, end)
        kind = bytes(self._text[begin : begin + 1])
        if kind == b'"':
            return self._read_string(begin, end)
        brackets = kind + bytes(self._text[end - 1 : end])
        if brackets not in (b"[]", b"{}"):
            return self._parse(bytes(self._text[begin:end]))  # a number; else it raises
        kinds = self._structure.kinds[low:high]
        own = low + np.flatnonzero(self._structure.depths[low:high] == depth)
        is_comma = self._structure.kinds[own] == ord(",")
        is_bracket = np.isin(self._structure.kinds[own], list(b"[]{}"))
        if kinds.size < 2 or np.count_nonzero(is_bracket) != 2:
            raise ValueError("brackets do not match")
        # The bounds of the items, as indices of the structure: bracket, commas, bracket.
        bounds = [low, *own[is_comma].tolist(), high - 1]
        edges = self._structure.at[bounds]
        value: Any = [] if kind == b"[" else {}
        add = value.extend if kind == b"[" else value.update
        first = 0
        while first < len(bounds) - 1:
            fitting = np.searchsorted(edges, edges[first] + SLICE_BYTES, "right") - 1
            last = max(first + 1, int(fitting))
            left, right = int(edges[first]) + 1, int(edges[last])
            if right - left > SLICE_BYTES:
                add(self._read_item(left, right, bounds[first] + 1, bounds[last], depth, kind))
            else:
                items = bytes(self._text[left:right])
                if len(bounds) > 2 and not items.strip(_BLANKS):
                    raise ValueError("a value is missing beside a comma")
                add(self._parse(brackets[:1] + items + brackets[1:]))
            first = last
        return value

    def _read_item(self, begin: int, end: int, low: int, high: int, depth: int, kind: bytes) -> Any:
        """Return a list or dict of one item that is too long for a slice."""
        if kind == b"[":
            return [self.read(begin, end, low, high, depth + 1)]
        if low >= high or self._structure.kinds[low] != ord(":"):
            raise ValueError("a key has no value")
        colon = int(self._structure.at[low])
        key = self.read(begin, colon, low, low, depth + 1)
        if not isinstance(key, str):
            raise ValueError("a key is no string")
        return {key: self.read(colon + 1, end, low + 1, high, depth + 1)}

    def _read_string(self, begin: int, end: int) -> str:
        if end - begin < 2 or self._text[end - 1] != ord('"'):
            raise ValueError("a string does not end")
        parts, start, end = [], begin + 1, end - 1
        while start < end:
            stop = self._cut(start, min(start + SLICE_BYTES, end), end)
            parts.append(self._parse(b'"' + bytes(self._text[start:stop]) + b'"'))
            start = stop
        return "".join(parts)

    def _cut(self, start: int, stop: int, end: int) -> int:
        """Return the last position up to ``stop`` where a string may be cut."""
        if stop == end:
            return end
        begin = max(start, stop - 4 * _LONGEST_TOKEN)
        # An odd number of backslashes before it means that it is escaped itself.
        before = bytes(self._text[start:begin])
        begin -= (len(before) - len(before.rstrip(b"\\"))) % 2
        tail = bytes(self._text[begin : stop + _LONGEST_TOKEN])
        cuts = [begin + token.end() for token in _TOKEN.finditer(tail)]
        return max((cut for cut in cuts if cut <= stop), default=stop)

    def _strip(self, begin: int, end: int) -> tuple[int, int]:
        """Return the bounds without blanks around them."""
        while begin < end:
            piece = bytes(self._text[begin : min(begin + SLICE_BYTES, end)])
            begin += len(piece) - len(piece.lstrip(_BLANKS))
            if begin == end or self._text[begin] not in _BLANKS:
                break
        while begin < end:
            piece = bytes(self._text[max(begin, end - SLICE_BYTES) : end])
            end -= len(piece) - len(piece.rstrip(_BLANKS))
            if self._text[end - 1] not in _BLANKS:
                break
        return begin, end
