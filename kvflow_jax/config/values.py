"""The values that a setting takes: how a flag's text is parsed, and what is refused."""

from __future__ import annotations

import ipaddress
import json
import math
import numbers
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_NAME_CHARS = 4096  # PATH_MAX on Linux
_MAX_SHOWN_CHARS = 80  # of a refused value, in its message

# store: the flag takes a value. switch: it sets True. toggle: it has a form --no-... that sets
# False. extend: it may be repeated. list: it takes several values, and may be repeated.
Action = Literal["store", "switch", "toggle", "extend", "list"]


@dataclass(frozen=True)
class Values(Generic[T_co]):
    """The values that a setting takes.

    Attributes:
        expected: completes the message "must be ...".
        parse: returns the value of a flag's text; raises ValueError if the text is no value.
        is_valid: whether an object is one of the values.
        choices: the values, if they are few names.
        metavar: stands for the value in ``--help``.
        action: what argparse does with the flag.
        is_secret: whether messages must not repeat a refused value.
    """

    expected: str
    parse: Callable[[str], T_co]
    is_valid: Callable[[object], bool]
    choices: tuple[str, ...] = ()
    metavar: str = ""
    action: Action = "store"
    is_secret: bool = False

    def of_text(self, text: str) -> T_co:
        """Return the value of a flag's text.

        Raises:
            ValueError: the text is no value; the message starts with "must be".
        """
        try:
            value = self.parse(text)
        except ValueError:
            raise ValueError(self.complaint(text)) from None
        if not self.is_valid(value):
            raise ValueError(self.complaint(text))
        return value

    def complaint(self, refused: object) -> str:
        """Return "must be ..." for a value that is refused."""
        if self.is_secret:
            return f"must be {self.expected}"
        shown = repr(refused)
        if len(shown) > _MAX_SHOWN_CHARS:
            shown = shown[:_MAX_SHOWN_CHARS] + "…"
        return f"must be {self.expected}; got {shown}"


def integer(low: int, high: int | None = None, *, noun: str = "an integer") -> Values[int]:
    """Return the integers from ``low`` to ``high``; None: without an upper bound."""
    bound = f"of at least {low}" if high is None else f"from {low} to {high}"

    def is_valid(value: object) -> bool:
        # Also an integer of numpy; a bool is an integer of Python, and none of a setting.
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            return False
        return low <= int(value) and (high is None or int(value) <= high)

    return Values(f"{noun} {bound}", int, is_valid, metavar="N")


def number(*, above: float | None = None, at_least: float | None = None) -> Values[float]:
    """Return the finite numbers with one of two lower bounds."""
    low = above if above is not None else at_least
    assert low is not None
    bound = f"above {low:g}" if above is not None else f"of at least {low:g}"

    def is_valid(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        # Every comparison with NaN is False.
        return low <= float(value) < math.inf and (above is None or float(value) > low)

    return Values(f"a number {bound}", float, is_valid, metavar="X")


def one_of(*choices: T) -> Values[T]:
    """Return a few names; ``one_of(*get_args(Mode))`` takes them from a Literal."""
    by_name = {str(choice): choice for choice in choices}

    def parse(text: str) -> T:
        if text not in by_name:
            raise ValueError
        return by_name[text]

    expected = f"one of {', '.join(by_name)}"
    return Values(expected, parse, lambda value: value in choices, choices=tuple(by_name))


def _is_name(value: object) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_NAME_CHARS
        and all(char >= " " for char in value)
    )


def list_of(
    item: Values[str], *, plural: str, separator: str | None = None
) -> Values[tuple[str, ...]]:
    """Return tuples of texts; the flag takes several, or a JSON list, as vLLM's flags do.

    Args:
        item: each of them.
        plural: what they are, for messages.
        separator: of several in one text; None: a text is one.
    """

    def parse(text: str) -> tuple[str, ...]:
        if text.startswith("["):
            return tuple(json.loads(text))
        return (text,) if separator is None else tuple(text.split(separator))

    def is_valid(value: object) -> bool:
        return isinstance(value, tuple) and all(item.is_valid(one) for one in value)

    return Values(plural, parse, is_valid, metavar=item.metavar, action="list")


def _is_origin(value: object) -> bool:
    return isinstance(value, str) and (
        value == "*" or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", value) is not None
    )


def _is_token(value: object) -> bool:
    return isinstance(value, str) and (
        value == "*" or re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", value) is not None
    )


def _is_host(value: object) -> bool:
    return isinstance(value, str) and (
        value == "*" or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", value) is not None
    )


def _is_network(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return value == "*"
    return True


def _is_keys(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(key, str) and key.strip() for key in value)


def _is_new_file(value: object) -> bool:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        return False
    path = Path(os.fsdecode(value))
    # Not the methods of Path, which raise for a name that is too long.
    return not os.path.isdir(path) and os.access(path.parent, os.W_OK)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


COUNT = integer(1)
INDEX = integer(0)
SEED = integer(0, 2**63 - 1)
PORT = integer(0, 65535, noun="a port")
POSITIVE = number(above=0)
NON_NEGATIVE = number(at_least=0)
TEXT = Values("text", str, lambda value: isinstance(value, str))
NAME = Values(f"a name of 1 to {MAX_NAME_CHARS} characters without line breaks", str, _is_name)
KEYS = Values(
    "text that is not empty",
    lambda text: (text.strip(),),
    _is_keys,
    metavar="KEY",
    action="extend",
    is_secret=True,
)
NAMES = list_of(NAME, plural=f"names of 1 to {MAX_NAME_CHARS} characters without line breaks")
ORIGINS = list_of(
    Values("an origin", str, _is_origin, metavar="ORIGIN"),
    plural="origins such as https://app.example.com, without a path, or *",
)
HOSTS = list_of(
    Values("a host", str, _is_host, metavar="HOST"),
    plural="names of hosts without a port, or *",
    separator=",",
)
NETWORKS = list_of(
    Values("an address", str, _is_network, metavar="ADDRESS"),
    plural="IP addresses or networks such as 10.0.0.0/8, or *",
    # As uvicorn's flag of this name.
    separator=",",
)
# Names of methods and headers are "tokens" in HTTP (RFC 9110, section 5.6.2).
HTTP_TOKENS = list_of(Values("a name", str, _is_token, metavar="NAME"), plural="names or *")
FOLDER: Values[Path] = Values(
    "the Path of a folder",
    lambda text: Path(text).expanduser(),
    lambda value: isinstance(value, Path),
    metavar="FOLDER",
)
FILE: Values[Path] = Values(
    "the Path of a file",
    lambda text: Path(text).expanduser(),
    lambda value: isinstance(value, Path),
    metavar="FILE",
)
NEW_FILE: Values[Path] = Values("a file that can be written", Path, _is_new_file, metavar="FILE")
SWITCH = Values("True or False", bool, _is_bool, action="switch")
TOGGLE = Values("True or False", bool, _is_bool, action="toggle")
