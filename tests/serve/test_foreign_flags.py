"""Flags of other servers are refused with their names here."""

from __future__ import annotations

import re

import pytest

from kvflow_jax.serve.command_line import make_parser
from kvflow_jax.serve.foreign_flags import FOREIGN_FLAGS


def options() -> set[str]:
    return {option for action in make_parser()._actions for option in action.option_strings}


def test_no_flag_of_this_server_is_foreign() -> None:
    assert not options() & FOREIGN_FLAGS.keys()


def test_the_flags_to_use_instead_exist() -> None:
    named = {flag for text in FOREIGN_FLAGS.values() for flag in re.findall("--[a-z-]+", text)}
    assert named <= options()


@pytest.mark.parametrize("value", [["--swap-space", "4"], ["--swap-space=4"]])
def test_a_foreign_flag_exits_with_what_to_use_instead(
    value: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(value)
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == "kvflow-serve: error: unknown flag --swap-space; it is --host-cache-gib"


def test_a_model_without_its_flag_exits_with_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_parser().parse_args(["owner/name"])
    assert "'owner/name'; every setting is a flag, the model --model" in capsys.readouterr().err
