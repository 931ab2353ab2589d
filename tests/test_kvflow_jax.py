"""The package itself: its public names, and its two folders at the top of the checkout."""

import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import kvflow_jax

ROOT = Path(__file__).parents[1]


def walk_packages(folder):
    """Yield each ``__init__.py``, through symlinks, which ``Path.rglob`` does not follow."""
    yield from folder.glob("__init__.py")
    for below in sorted(folder.iterdir()):
        if below.is_dir():
            yield from walk_packages(below)


def run(program, cwd):
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", kvflow_jax.__all__)
def test_a_public_name_is_found(name):
    assert getattr(kvflow_jax, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        _ = kvflow_jax.Modle


def test_rooms_of_pure_python_import_without_jax():
    program = """
import sys
import tomllib
sys.modules["jax"] = None
import kvflow_jax.workflow.workflow, kvflow_jax.cache.prefix_cache, kvflow_jax.cache.policy
import kvflow_jax.serve.command_line
from kvflow_jax import Workflow, CacheConfig, EngineConfig
"""
    found = run(program, ROOT)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("room", ["cache", "models"])
def test_a_room_imported_by_itself_names_its_package(room):
    found = run(f"import {room}", ROOT)
    assert f"ImportError: import kvflow_jax.{room}" in found.stderr


@pytest.mark.parametrize("leaves", ["nothing", "a text file"])
def test_a_checkout_without_symlinks_finds_its_rooms(tmp_path, leaves):
    """Windows' git writes a text file in place of a symlink, a zip file may drop it."""
    shutil.copytree(
        ROOT / "kvflow_jax",
        tmp_path / "kvflow_jax",
        ignore=lambda folder, names: {"cache", "models", "__pycache__"} & set(names),
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for room in ("cache", "models"):
        shutil.copytree(ROOT / room, tmp_path / room)
        if leaves == "a text file":
            (tmp_path / "kvflow_jax" / room).write_text(f"../{room}")
    program = """
import kvflow_jax.cache.blocks, kvflow_jax.models.config, kvflow_jax.engine.scheduler
from kvflow_jax import LLM
print(kvflow_jax.cache.blocks.__file__)
"""
    found = run(program, tmp_path)
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()) == tmp_path / "cache" / "blocks.py"


@pytest.mark.parametrize(
    "module", ["kvflow_jax.cache.policy", "kvflow_jax.models", "kvflow_jax.cache"]
)
def test_import_paths_that_were_public_still_work(module):
    assert import_module(module)


def test_every_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [path.parent.relative_to(ROOT) for path in walk_packages(ROOT / "kvflow_jax")]
    assert sorted(listed) == sorted(".".join(path.parts) for path in found)
