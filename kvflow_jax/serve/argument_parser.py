"""An argparse parser that takes flags from a config, and suggests the nearest flag."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from kvflow_jax.config.flag import Config, Setting
from kvflow_jax.config.values import Values

T = TypeVar("T")

MAX_FLAG_CHARS = 64  # of an unknown flag that an error message repeats


class ArgumentParser(argparse.ArgumentParser):
    """Parse flags; exit with code 2 and the nearest flag's name if one is unknown.

    The message leaves out the value of an unknown flag, which may be a key.

    Attributes:
        foreign_flags: flags of other commands, each with what to do instead.
    """

    foreign_flags: Mapping[str, str] = MappingProxyType({})

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Return the flags, as argparse does."""
        parsed, unknown = self.parse_known_args(args, namespace or argparse.Namespace())
        if unknown:
            self.error(self._unknown_argument(unknown[0]))
        return parsed

    def add_config(self, config: Config) -> None:
        """Add the flags of a config, without those of the configs that it holds, as a group.

        Parsing sets only the flags that are given, by name of the field; see ``with_values``.
        """
        group = self.add_argument_group(config.title, config.about or None)
        for setting in config.settings():
            _add_setting(group, setting)

    def _unknown_argument(self, argument: str) -> str:
        """Return the error message for an argument that no flag takes."""
        flag = argument.partition("=")[0][:MAX_FLAG_CHARS]
        known = [option for action in self._actions for option in action.option_strings]
        if not flag.isprintable() or not flag.strip("-") or not flag.startswith("-"):
            model = ", the model --model" if "--model" in known else ""
            return f"unexpected argument {flag!r}; every setting is a flag{model}: see --help"
        if flag in self.foreign_flags:
            return f"unknown flag {flag}; {self.foreign_flags[flag]}"
        nearest = difflib.get_close_matches(flag, known, n=1)
        return f"unknown flag {flag}; " + (
            f"did you mean {nearest[0]}?" if nearest else "see --help"
        )


def argument_type(values: Values[T]) -> Callable[[str], T]:
    """Return a ``type`` of argparse for values."""

    def convert(text: str) -> T:
        try:
            return values.of_text(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


class _ExtendTuple(argparse.Action):
    """Append the values of each occurrence of a flag to one tuple.

    Each is a tuple, or, for a flag that takes several values, a list of tuples.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        before: tuple[object, ...] = getattr(namespace, self.dest, ())
        given = values if isinstance(values, list) else [values]
        setattr(namespace, self.dest, sum(given, before))


def _add_setting(group: argparse._ArgumentGroup, setting: Setting) -> None:
    flag, values = setting.flag, setting.flag.values
    option, dest, text = setting.option, setting.field, setting.help.replace("%", "%%")
    if values.action == "switch":
        group.add_argument(
            option, dest=dest, action="store_true", default=argparse.SUPPRESS, help=text
        )
        return
    if values.action == "toggle":
        group.add_argument(
            option,
            dest=dest,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=text,
        )
        return
    group.add_argument(
        option,
        dest=dest,
        action=_ExtendTuple if values.action in ("extend", "list") else "store",
        nargs="+" if values.action == "list" else None,
        type=argument_type(values),
        # argparse parses a text that is the default as it parses one that is given.
        default=(flag.env and os.environ.get(flag.env)) or argparse.SUPPRESS,
        choices=values.choices or None,
        metavar=None if values.choices else flag.unit or values.metavar or "TEXT",
        help=text,
    )
