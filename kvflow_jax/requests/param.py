"""Definitions of sampling parameters: what each does, what it accepts, and where it goes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import FIELDS as STRUCTURED_OUTPUTS_FIELDS
from kvflow_jax.grammar.spec import StructuredOutputsParams


@dataclass(frozen=True)
class Param(ABC):
    """What is known of a sampling parameter beside its name, its type and its default.

    Args:
        doc: what it does, a phrase for ``help`` and the documentation.
        http_name: its field in HTTP bodies; "": the name of the parameter.
    """

    doc: str
    _: KW_ONLY
    http_name: str = ""

    @property
    @abstractmethod
    def accepts(self) -> str:
        """The accepted values in words."""

    @abstractmethod
    def check(self, name: str, value: object) -> object:
        """Return a value in the form in which requests keep it.

        Raises:
            InvalidRequestError: it has the wrong type or is out of range; the error names ``name``.
        """


@dataclass(frozen=True)
class Integer(Param):
    """An integer in [low, high].

    Args:
        high: None: no bound.
        is_column: the sampler reads it: a column of its rows, i32.
        http_off: an integer that HTTP clients send for the default.
    """

    low: int
    high: int | None = None
    _: KW_ONLY
    is_column: bool = False
    http_off: int | None = None

    @property
    def accepts(self) -> str:
        return f"an integer {_bound(self.low, self.high)}"

    def check(self, name: str, value: object) -> int:
        return _check_integer(name, value, self.low, self.high)


@dataclass(frozen=True)
class Number(Param):
    """A number in [low, high], or in (low, high].

    Args:
        low_open: ``low`` itself is not accepted.
        is_column: the sampler reads it: a column of its rows, f32.
        http_off: a number that HTTP clients send for the default.
    """

    low: float
    high: float
    _: KW_ONLY
    low_open: bool = False
    is_column: bool = False
    http_off: float | None = None

    @property
    def accepts(self) -> str:
        return f"a number {_interval(self.low, self.high, self.low_open)}"

    def check(self, name: str, value: object) -> float:
        return _check_number(name, value, self.low, self.high, self.low_open)


@dataclass(frozen=True)
class Flag(Param):
    """A bool."""

    @property
    def accepts(self) -> str:
        return "true or false"

    def check(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise InvalidRequestError(f"{name} must be true or false, got {value!r:.80}", name)
        return value


@dataclass(frozen=True)
class Strings(Param):
    """A string or a list of strings, kept as a tuple without empty ones, as OpenAI's API does.

    Args:
        max_len: characters of each.
    """

    max_num: int
    max_len: int

    @property
    def accepts(self) -> str:
        return f"a string, or a list of up to {self.max_num}, of up to {self.max_len} characters"

    def check(self, name: str, value: object) -> tuple[str, ...]:
        listed = (value,) if isinstance(value, str) else value
        if not isinstance(listed, Sequence) or not all(isinstance(one, str) for one in listed):
            raise InvalidRequestError(f"{name} must be a string or a list of strings", name)
        strings = tuple(one for one in listed if one)
        if len(strings) > self.max_num:
            raise InvalidRequestError(
                f"{name} may hold up to {self.max_num} strings, got {len(strings)}", name
            )
        if any(len(one) > self.max_len for one in strings):
            raise InvalidRequestError(
                f"a {name} string may have up to {self.max_len} characters", name
            )
        return strings


@dataclass(frozen=True)
class TokenIds(Param):
    """A list of token ids, kept as a tuple."""

    max_num: int

    @property
    def accepts(self) -> str:
        return f"a list of up to {self.max_num} token ids"

    def check(self, name: str, value: object) -> tuple[int, ...]:
        if not isinstance(value, list | tuple):
            raise InvalidRequestError(f"{name} must be a list of token ids", name)
        if len(value) > self.max_num:
            raise InvalidRequestError(
                f"{name} may hold up to {self.max_num} ids, got {len(value)}", name
            )
        return tuple(_check_integer(name, token, low=0) for token in value)


@dataclass(frozen=True)
class TokenBias(Param):
    """A mapping from token ids to numbers in [low, high], kept as a dict of its own."""

    low: float
    high: float
    max_num: int

    @property
    def accepts(self) -> str:
        return (
            f"a mapping of up to {self.max_num} token ids to numbers "
            f"in [{self.low:g}, {self.high:g}]"
        )

    def check(self, name: str, value: object) -> dict[int, float]:
        if not isinstance(value, Mapping):
            raise InvalidRequestError(f"{name} must map token ids to numbers", name)
        if len(value) > self.max_num:
            raise InvalidRequestError(
                f"{name} may hold up to {self.max_num} entries, got {len(value)}", name
            )
        return {
            _check_integer(name, token, low=0): _check_number(name, bias, self.low, self.high)
            for token, bias in value.items()
        }


@dataclass(frozen=True)
class StructuredOutputs(Param):
    """A ``StructuredOutputsParams``, or a mapping of its fields."""

    @property
    def accepts(self) -> str:
        return f"an object with one of {', '.join(STRUCTURED_OUTPUTS_FIELDS)}"

    def check(self, name: str, value: object) -> StructuredOutputsParams:
        if isinstance(value, StructuredOutputsParams):
            return value
        if not isinstance(value, Mapping):
            raise InvalidRequestError(f"{name} must be {self.accepts}", name)
        return StructuredOutputsParams.of_mapping(value, name)


def _check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r:.80}", name)
    if value < low or (high is not None and value > high):
        raise InvalidRequestError(f"{name} must be {_bound(low, high)}, got {value}", name)
    return value


def _check_number(
    name: str, value: object, low: float, high: float, low_open: bool = False
) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(f"{name} must be a number, got {value!r:.80}", name)
    if math.isnan(value) or value < low or value > high or (low_open and value == low):
        interval = _interval(low, high, low_open)
        raise InvalidRequestError(f"{name} must be {interval}, got {value}", name)
    return value


def _bound(low: int, high: int | None) -> str:
    return f"at least {low}" if high is None else f"between {low} and {high}"


def _interval(low: float, high: float, low_open: bool) -> str:
    return f"in {'(' if low_open else '['}{low:g}, {high:g}]"
