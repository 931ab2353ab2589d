"""A command whose packages are missing says in one line how to install them."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from experiments.optional_packages import EXTRAS, main_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Write the module of a command, and return its name."""

    def write(text):
        (tmp_path / "command_of_test.py").write_text(text)
        return "command_of_test"

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    sys.modules.pop("command_of_test", None)


@pytest.mark.parametrize("package", EXTRAS)
def test_a_missing_package_is_named_with_its_extra(package, command, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(SystemExit) as raised:
        main_of(command(f"import {package}.anything"))()
    assert raised.value.code == (
        f"this command needs {package}; install it with: "
        f"python -m pip install -e '.[{EXTRAS[package]}]'"
    )


def test_a_missing_module_that_no_extra_has_is_a_fault(command):
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        main_of(command("import nowhere"))()


def test_the_main_of_a_module_is_called(command):
    assert main_of(command("def main():\n    return 7\n"))() == 7


def test_the_extras_have_these_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for package, extra in EXTRAS.items():
        lines = project["optional-dependencies"][extra]
        assert package in [re.split(r"[><=;\[ ]", line)[0].replace("-", "_") for line in lines]


def test_the_load_of_a_server_names_its_client():
    program = (
        "import runpy, sys\n"
        "sys.modules['httpx'] = None\n"
        "sys.argv[1:] = ['--quick']\n"
        "runpy.run_module('experiments.load', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("this command needs httpx;")
    assert done.stderr.count("\n") == 1
