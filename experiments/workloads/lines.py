"""Parse lines of a trace: JSON objects, checked fields, and faults by line number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from typing import Any

MAX_TOKENS = 10_000_000  # of a prompt or an output; more than any model reads
DEFAULT_OUTPUT = 128  # tokens of an output whose length is not given
MAX_MS = 1e15
MAX_DETAILED = 5  # lines whose faults are reported; of others, only the numbers


class LineError(ValueError):
    """A fault of one line."""


class Faults:
    """Faults of the lines of a file, by line number."""

    def __init__(self) -> None:
        self._by_line: dict[int, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_line)

    def __str__(self) -> str:
        lines = iter(sorted(self._by_line))
        details = [f"line {n}: {', '.join(self._by_line[n])}" for n in islice(lines, MAX_DETAILED)]
        if others := list(lines):
            details.append(f"more broken lines: {format_ranges(others)}")
        return "; ".join(details)

    def add(self, line: int, fault: str) -> None:
        """Add a fault of a line."""
        self._by_line.setdefault(line, []).append(fault)

    @contextmanager
    def of(self, line: int) -> Iterator[None]:
        """Catch a ``LineError`` in the block and add it to the line."""
        try:
            yield
        except LineError as error:
            self.add(line, str(error))
        except RecursionError:  # raised by ``json``, both in reading and in writing
            self.add(line, "nested too deeply")


def json_object(line: str) -> dict[str, Any]:
    """Parse a line. Raises LineError if it is not a JSON object."""
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:  # a number with thousands of digits
        raise LineError(f"not JSON: {error}") from None
    return as_object(data, "")


def as_object(value: Any, where: str) -> dict[str, Any]:
    """Return the value. Raises LineError if it is not an object."""
    if not isinstance(value, dict):
        raise LineError(f"{where} must be an object" if where else "not an object")
    return value


def as_list(value: Any, where: str) -> list[Any]:
    """Return a list, empty for null. Raises LineError if the value is neither."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise LineError(f"{where} must be a list")
    return value


def session_ids(value: Any, where: str) -> list[str]:
    """Return session ids, none for null. Raises LineError if the value is not a list of strings."""
    ids: list[str] = as_list(value, where)
    if not all(isinstance(item, str) for item in ids):
        raise LineError(f"{where} must be a list of session ids")
    return ids


def read_count(data: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return an integer of at least 1. Raises LineError if it is not one, or has no default."""
    value = data.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables with missing values write integers as floats
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_TOKENS:
        raise LineError(f"{key} must be an integer from 1 to {MAX_TOKENS}")
    return value


def read_seconds(data: dict[str, Any], key: str) -> float | None:
    """Return milliseconds in seconds, or None if absent. Raises LineError if invalid."""
    value = data.get(key)
    if value is None:
        return None
    # The comparison also rejects NaN.
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < MAX_MS:
        raise LineError(f"{key} must be milliseconds, from 0 to {MAX_MS:g}")
    return value / 1e3


def format_ranges(numbers: list[int]) -> str:
    """Format sorted numbers as ranges: ``7 to 9, 12``."""
    parts = []
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        first, *rest = (number for _, number in run)
        parts.append(f"{first} to {rest[-1]}" if rest else f"{first}")
    return ", ".join(parts)
