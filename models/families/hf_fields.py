"""Typed reading of a Hugging Face config.json that collects every problem before it raises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from kvflow_jax.errors import ModelLoadError

# Larger numbers are mistakes. Names of tensors and memory are computed from them before a file with
# that many tensors is found missing.
MAX_SIZE = (1 << 31) - 1
MAX_LAYERS = 4096
MAX_EXPERTS = 8192
MAX_EXPERTS_OF_ALL_LAYERS = 1 << 17
MAX_VOCABULARY = 1 << 24
MAX_HEAD_DIM = 1 << 16

# Characters of a value that a message shows.
_MAX_SHOWN = 80

# A parsed JSON object.
Json = Mapping[str, object]


@dataclass
class Problems:
    """What is wrong with the fields of a file.

    Attributes:
        source: name of the file, for messages.
    """

    source: str = "config.json"
    missing: list[str] = field(default_factory=list)
    wrong_types: list[str] = field(default_factory=list)
    out_of_range: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def messages(self) -> list[str]:
        """Return one message for each kind of problem that was found, and each other problem."""
        kinds = {
            f"{self.source} lacks": self.missing,
            "values of the wrong type:": self.wrong_types,
            "values must be above 0 and finite, but": self.out_of_range,
        }
        return [f"{kind} {', '.join(found)}" for kind, found in kinds.items() if found] + [
            *dict.fromkeys(self.others)
        ]

    def raise_if_any(self) -> None:
        """Raise an error if there are problems."""
        if self.messages():
            raise self.error()

    def error(self) -> ModelLoadError:
        """Return an error that lists all problems."""
        messages = "\n- ".join(self.messages())
        return ModelLoadError(f"the model of {self.source} cannot be loaded:\n- {messages}")


class HfFields:
    """The fields of a config.json, or of an object within it. A field that is null is absent.

    A reader adds what is wrong with a field to ``problems`` and returns a stand-in, so that reading
    goes on to the next field. A check of several fields must ask ``usable`` first.
    """

    def __init__(self, values: Json, problems: Problems | None = None) -> None:
        self.values = values
        self.problems = Problems() if problems is None else problems
        self._unusable: set[str] = set()

    def has(self, name: str) -> bool:
        """True if the field is present and not null."""
        return self.values.get(name) is not None

    def usable(self, *names: str) -> bool:
        """True if no reader has found a problem with these fields."""
        return self._unusable.isdisjoint(names)

    def report(self, problem: str) -> None:
        """Add a problem that concerns several fields, or the value of one."""
        self.problems.others.append(problem)

    def fail(self, problem: str) -> NoReturn:
        """Raise an error that lists this problem and all others."""
        self.report(problem)
        raise self.problems.error()

    def size(self, name: str, default: int | None = None, *, limit: int = MAX_SIZE) -> int:
        """Return a whole number from 1 to ``limit``; without a default the field is required."""
        size = int(self.positive(name, default))
        if size > limit:
            message = f"{name} is {self._shown(name)}, above the limit of {limit}"
            self._reject(self.problems.others, name, message)
            return 1
        if not size:
            self._reject(self.problems.out_of_range, name, f"{name} is {self._shown(name)}")
        return max(size, 1)

    def positive(self, name: str, default: float | None = None) -> float:
        """Return a finite number above 0; without a default the field is required."""
        if not self.has(name):
            if default is None:
                self._reject(self.problems.missing, name, name)
            return 1.0 if default is None else default
        number = self.number(name)
        if not 0 < number < math.inf and self.usable(name):
            self._reject(self.problems.out_of_range, name, f"{name} is {self._shown(name)}")
        return number if self.usable(name) else 1.0

    def number(self, name: str, default: float = 0.0) -> float:
        """Return a number, ``default`` if the field is absent."""
        value = self.values.get(name)
        try:
            return default if value is None else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            self._reject_type(name)
            return 1.0

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of numbers, empty if the field is absent."""
        try:
            return tuple(float(value) for value in self._list(name))  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            self._reject_type(name)
            return ()

    def flag(self, name: str) -> bool:
        """Return a boolean, False if the field is absent."""
        return bool(self.values.get(name))

    def text(self, name: str, default: str = "") -> str:
        """Return a string, ``default`` if the field is absent."""
        return str(self.values[name]) if self.has(name) else default

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings, or a single one; empty if the field is absent."""
        value = self.values.get(name)
        return (value,) if isinstance(value, str) else tuple(map(str, self._list(name)))

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return one token id or a list of them; empty if the field is absent."""
        value = self.values.get(name)
        ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
        try:
            return tuple(int(token_id) for token_id in ids)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            self._reject_type(name)
            return ()

    def nested(self, name: str) -> HfFields:
        """Return the fields of an object, none if the field is absent."""
        value = self.values.get(name) or {}
        if not isinstance(value, Mapping):
            self._reject_type(name)
            value = {}
        return HfFields(value, self.problems)

    def _list(self, name: str) -> list[object]:
        value = self.values.get(name) or []
        if isinstance(value, list | tuple):
            return list(value)
        self._reject_type(name)
        return []

    def _shown(self, name: str) -> str:
        """Return a field's value for a message."""
        return shortened(str(self.values.get(name)))

    def _reject_type(self, name: str) -> None:
        value = shortened(repr(self.values[name]))
        self._reject(self.problems.wrong_types, name, f"{name} is {value}")

    def _reject(self, found: list[str], name: str, message: str) -> None:
        if name not in self._unusable:
            self._unusable.add(name)
            found.append(message)


def shortened(text: str) -> str:
    """Return what a message shows of a text from a file, on one line and without control codes."""
    shown = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"
    return shown if shown.isprintable() else repr(shown)[1:-1]
