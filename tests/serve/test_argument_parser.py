"""The parser of every command suggests the nearest flag."""

import pytest

from kvflow_jax.serve.argument_parser import MAX_FLAG_CHARS, ArgumentParser


@pytest.fixture
def parser() -> ArgumentParser:
    parser = ArgumentParser(prog="command")
    parser.add_argument("--port", type=int)
    parser.add_argument("--quick", action="store_true")
    return parser


def error_of(parser, flags, capsys) -> str:
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(flags)
    return capsys.readouterr().err.splitlines()[-1]


def test_known_flags_are_parsed(parser):
    assert vars(parser.parse_args(["--port", "80"])) == {"port": 80, "quick": False}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quik"], "command: error: unknown flag --quik; did you mean --quick?"),
        (["--prot", "80"], "command: error: unknown flag --prot; did you mean --port?"),
        (["--xyzzy"], "command: error: unknown flag --xyzzy; see --help"),
        (["--"], "command: error: unexpected argument '--'; every setting is a flag: see --help"),
        (["80"], "command: error: unexpected argument '80'; every setting is a flag: see --help"),
    ],
)
def test_an_unknown_argument_exits_with_the_nearest_flag(parser, flags, message, capsys):
    assert error_of(parser, flags, capsys) == message


def test_the_value_of_an_unknown_flag_is_not_repeated(parser, capsys):
    assert "secret" not in error_of(parser, ["--ports=secret"], capsys)


def test_a_long_flag_is_cut(parser, capsys):
    assert len(error_of(parser, ["--" + "x" * 1000], capsys)) < MAX_FLAG_CHARS + 60


def test_control_characters_are_escaped(parser, capsys):
    assert "\x1b" not in error_of(parser, ["--x\x1b[31m"], capsys)
