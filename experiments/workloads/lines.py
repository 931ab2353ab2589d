"""Lines of a trace: JSON objects, fields that are checked, and what is wrong with which line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from typing import Any

MAX_TOKENS = 10_000_000  # of a prompt or an answer; no model reads as many
DEFAULT_OUTPUT = 128  # tokens, where it is not said how many to answer
MAX_MS = 1e15
MAX_TOLD = 5  # lines of which is said what is wrong; of the others, only which they are


class LineError(ValueError):
    """What is wrong with one line."""


class Faults:
    """What is wrong with the lines of a file, by their numbers."""

    def __init__(self) -> None:
        self._by_line: dict[int, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_line)

    def __str__(self) -> str:
        lines = iter(sorted(self._by_line))
        said = [f"line {n}: {', '.join(self._by_line[n])}" for n in islice(lines, MAX_TOLD)]
        if others := list(lines):
            said.append(f"and also broken: {ranges(others)}")
        return "; ".join(said)

    def add(self, line: int, what: str) -> None:
        self._by_line.setdefault(line, []).append(what)

    @contextmanager
    def of(self, line: int) -> Iterator[None]:
        """Keep a ``LineError`` that is raised within."""
        try:
            yield
        except LineError as error:
            self.add(line, str(error))
        except RecursionError:  # of ``json``, both ways
            self.add(line, "nested too deeply")


def json_object(line: str) -> dict[str, Any]:
    """Raises LineError: the line is none."""
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:  # a number with thousands of digits
        raise LineError(f"not JSON: {error}") from None
    return an_object(data, "")


def an_object(value: Any, where: str) -> dict[str, Any]:
    """Raises LineError: the value is none."""
    if not isinstance(value, dict):
        raise LineError(f"{where} must be an object" if where else "not an object")
    return value


def a_list(value: Any, where: str) -> list[Any]:
    """A list; null is an empty one. Raises LineError: the value is neither."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise LineError(f"{where} must be a list")
    return value


def names(value: Any, where: str) -> list[str]:
    """Session ids; null is none of them. Raises LineError: the value is no list of strings."""
    value = a_list(value, where)
    if not all(isinstance(one, str) for one in value):
        raise LineError(f"{where} must be a list of session ids")
    return value


def count(data: dict[str, Any], key: str, default: int | None = None) -> int:
    """A whole number. Raises LineError: it is none, or missing where there is no default."""
    value = data.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables write them where some are missing
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TOKENS:
        raise LineError(f"{key} must be a whole number from 1 to {MAX_TOKENS}")
    return value


def seconds(data: dict[str, Any], key: str) -> float | None:
    """Milliseconds, in seconds; None where there are none. Raises LineError: they are no time."""
    value = data.get(key)
    if value is None:
        return None
    # Put so that NaN is no time either.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < MAX_MS:
        raise LineError(f"{key} must be milliseconds, from 0 to {MAX_MS:g}")
    return value / 1e3


def ranges(numbers: list[int]) -> str:
    """``7 to 9, 12``: sorted numbers, each run of them by its ends."""
    said = []
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        first, *rest = (number for _, number in run)
        said.append(f"{first} to {rest[-1]}" if rest else f"{first}")
    return ", ".join(said)
