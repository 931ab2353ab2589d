"""``python -m kvflow_jax`` lists its commands and runs them."""

import subprocess
import sys

import pytest

from kvflow_jax import __main__ as command_line
from kvflow_jax import __version__
from kvflow_jax.serve import __main__ as serve


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_the_commands_are_listed(argv, capsys):
    assert command_line.main(argv) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in command_line.COMMANDS)


def test_the_version_is_printed(capsys):
    assert command_line.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("serv", "did you mean serve?"),
        ("xyz", "there are: serve, cache"),
        ("--port", "flags follow a command"),
    ],
)
def test_an_unknown_command_suggests_the_nearest(name, hint, capsys):
    assert command_line.main([name]) == 2
    assert hint in capsys.readouterr().err


def test_flags_reach_the_command(monkeypatch):
    passed = []
    monkeypatch.setattr(serve, "main", lambda argv=None: passed.append(argv))
    assert command_line.main(["serve", "--port", "9000"]) == 0
    assert passed == [["--port", "9000"]]


def test_flags_of_the_process_reach_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kvflow-jax", "serve", "--port", "9000"])
    monkeypatch.setattr(serve, "main", lambda argv=None: sys.argv[1:] != ["--port", "9000"])
    assert command_line.main() == 0


def test_the_module_runs_without_jax():
    program = (
        "import sys; sys.modules['jax'] = None; from kvflow_jax.__main__ import main; main([])"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
