from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.agents.agent import Agent
from tests.agents.installation import install

AGENT = Agent("one", "npm", "one-package", "1.0", "one", (), ())


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program there is; a test writes it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin")
    return folder / "npm"


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_version_is_installed_once(npm: Path, tmp_path: Path) -> None:
    made = "node_modules/.bin/one"
    write_program(npm, f'echo "$@" >> ../calls; mkdir -p node_modules/.bin; touch {made}')
    for _ in range(2):
        assert install(AGENT, tmp_path) == (tmp_path / "one" / made, "")
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.endswith("one-package@1.0")


def test_what_cannot_be_installed_has_a_reason(npm: Path, tmp_path: Path) -> None:
    write_program(npm, "echo no such version >&2; exit 1")
    assert install(AGENT, tmp_path) == (None, "npm failed: no such version")
    write_program(npm, "exit 0")
    assert install(AGENT, tmp_path) == (None, "one-package 1.0 has no program one")


def test_a_machine_without_npm_installs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install(AGENT, tmp_path) == (None, "npm is not there")
