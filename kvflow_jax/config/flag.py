"""Configurations whose fields define their flags.

A field of a ``Config`` is written as ``port: int = flag(8000, "port to listen on", PORT)``. Its
check, its flag of the command line, its part in the handshake of several processes and its line in
``docs/flags.md`` follow from that. A field that ``LLM`` takes is listed in ``api.options`` too, for
type checkers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, TypeVar

from kvflow_jax.config.values import Values
from kvflow_jax.errors import ConfigError

T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound="Config")

_METADATA_KEY = "flag"


@dataclass(frozen=True)
class Flag:
    """How a field is set on the command line.

    Attributes:
        help: what the setting does; without its default.
        values: the values that it takes.
        name: of the flag, with underscores; "": the name of the field.
        unit: of its numbers, such as GiB; stands for the value in ``--help``.
        if_unset: what a default of None means; "": nothing worth saying.
        env: environment variable that replaces the default on the command line; "": none.
        is_per_process: whether processes that share a model may differ in it.
    """

    help: str
    values: Values[object]
    name: str = ""
    unit: str = ""
    if_unset: str = ""
    env: str = ""
    is_per_process: bool = False


def flag(
    default: T,
    help: str,
    values: Values[T],
    *,
    name: str = "",
    unit: str = "",
    if_unset: str = "",
    env: str = "",
    is_per_process: bool = False,
    is_shown: bool = True,
) -> T:
    """Return the default of a field of a ``Config``, with its ``Flag``, for the dataclass.

    Args:
        is_shown: whether the repr of the config has the field; False for secrets.
    """
    metadata = {_METADATA_KEY: Flag(help, values, name, unit, if_unset, env, is_per_process)}
    return field(default=default, metadata=metadata, repr=is_shown)


@dataclass(frozen=True)
class Setting:
    """A field of a config, with its flag and its present value."""

    field: str
    flag: Flag
    default: object
    value: object

    @property
    def name(self) -> str:
        """The name in messages, and of the flag, with underscores."""
        return self.flag.name or self.field

    @property
    def option(self) -> str:
        """The flag as it is written on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def help(self) -> str:
        """The help of the flag, with its default."""
        default = self.flag.if_unset
        if isinstance(self.default, (str, int, float)) and not isinstance(self.default, bool):
            default = f"{self.default}"
        if self.flag.env:
            default = f"{self.flag.env}, or {default}"
        return f"{self.flag.help}; default: {default}" if default else self.flag.help

    def check(self) -> None:
        """Raise ConfigError, which names the setting, unless its value is valid."""
        is_unset = self.value is None and self.default is None
        if not is_unset and not self.flag.values.is_valid(self.value):
            raise ConfigError(f"{self.name} {self.flag.values.complaint(self.value)}")


@dataclass(frozen=True)
class Config:
    """Base of the configurations. A field either has a flag, or is a ``Config`` itself.

    Field names are unique among a config and the configs that it holds.

    Attributes:
        title, about: heading and description of the flags, in ``--help`` and ``docs/flags.md``.

    Raises:
        ConfigError: a value is none that its field takes; names the field.
    """

    title: ClassVar[str]
    about: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for setting in self.settings():
            setting.check()
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(one.default, Config) and not isinstance(value, type(one.default)):
                kind = type(one.default).__name__
                raise ConfigError(f"{one.name} must be a {kind}; got {value!r}")

    def settings(self) -> list[Setting]:
        """Return the fields that have flags, without those of the configs that this one holds."""
        return [
            Setting(one.name, one.metadata[_METADATA_KEY], one.default, getattr(self, one.name))
            for one in fields(self)
            if _METADATA_KEY in one.metadata
        ]

    def configs(self) -> Iterator[Config]:
        """Yield this config, then the configs that it holds."""
        yield self
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Config):
                yield from value.configs()


def with_values(config: ConfigT, values: Mapping[str, object]) -> ConfigT:
    """Return a config with other values for some fields, its own or of a config that it holds.

    Args:
        values: by name of the field; names of other configs are ignored.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """
    changes: dict[str, object] = {}
    for one in fields(config):
        value = getattr(config, one.name)
        if isinstance(value, Config):
            changes[one.name] = with_values(value, values)
        elif one.name in values:
            changes[one.name] = values[one.name]
    return replace(config, **changes)
