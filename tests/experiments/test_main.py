"""``python -m experiments`` lists commands that exist."""

from importlib import import_module

import pytest

from experiments.__main__ import GROUPS, main

COMMANDS = [name for group in GROUPS.values() for name in group]


def test_every_command_is_listed(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"python -m experiments.{name} " in listed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_main(name):
    module = import_module(f"experiments.{name}")
    if not hasattr(module, "main"):
        module = import_module(f"experiments.{name}.__main__")
    assert callable(module.main)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cycle", "did you mean: python -m experiments.cycle"),
        ("engine-bench", "did you mean: python -m experiments.engine_bench"),
        ("xyzzy", "did you mean: python -m experiments.NAME"),
    ],
)
def test_an_argument_is_refused_with_the_nearest_command(name, message, capsys):
    assert main([name, "--quick"]) == 2
    assert message in capsys.readouterr().err
