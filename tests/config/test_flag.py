"""Configurations whose fields define their flags."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from kvflow_jax.config.flag import Config, flag, with_values
from kvflow_jax.config.values import COUNT, FOLDER, NAME, SWITCH
from kvflow_jax.errors import ConfigError


@dataclass(frozen=True)
class Inner(Config):
    title: ClassVar[str] = "inner"

    depth: int = flag(1, "how deep", COUNT)


@dataclass(frozen=True)
class Outer(Config):
    title: ClassVar[str] = "outer"

    names: str = flag("a", "a name", NAME, name="name")
    limit: int | None = flag(None, "the limit", COUNT, if_unset="no limit")
    folder: str | None = flag(None, "a folder", FOLDER, env="FOLDER", if_unset="~")
    is_fast: bool = flag(False, "be fast", SWITCH)
    inner: Inner = Inner()


def test_a_setting_has_the_name_of_its_flag():
    settings = {setting.field: setting for setting in Outer().settings()}
    assert list(settings) == ["names", "limit", "folder", "is_fast"]
    assert [one.option for one in settings.values()] == [
        "--name",
        "--limit",
        "--folder",
        "--is-fast",
    ]
    assert settings["names"].help == "a name; default: a"
    assert settings["limit"].help == "the limit; default: no limit"
    assert settings["folder"].help == "a folder; default: FOLDER, or ~"
    assert settings["is_fast"].help == "be fast"


def test_an_invalid_value_is_an_error_that_names_the_setting():
    with pytest.raises(ConfigError, match=r"^name must be a name of"):
        Outer(names="")
    with pytest.raises(ConfigError, match=r"^limit must be an integer of at least 1; got 0"):
        Outer(limit=0)
    with pytest.raises(ConfigError, match=r"^inner must be a Inner; got 3"):
        Outer(inner=3)
    assert Outer(limit=None).limit is None
    with pytest.raises(ConfigError, match=r"^depth must be"):
        Inner(depth=None)


def test_values_reach_the_configs_that_a_config_holds():
    config = with_values(Outer(), {"limit": 3, "depth": 7, "unknown": 1})
    assert config == Outer(limit=3, inner=Inner(7))
    assert [type(one) for one in config.configs()] == [Outer, Inner]
    with pytest.raises(ConfigError, match="depth must be"):
        with_values(Outer(), {"depth": 0})
