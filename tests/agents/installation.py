"""Installs an agent from its registry into a folder of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.agents.agent import Agent

TIMEOUT_S = 600


def install(agent: Agent, environments: Path) -> tuple[Path | None, str]:
    """Return the agent's program, or None and why there is none.

    A folder that holds this version is used again.
    """
    folder = environments / agent.program
    stamp = folder / f"{agent.version}.done"
    if agent.registry == "PyPI":
        program = folder / "bin" / agent.program
    else:
        program = folder / "node_modules" / ".bin" / agent.program
    if not stamp.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for command in _commands(agent, folder):
            if shutil.which(command[0]) is None:
                return None, f"{command[0]} is not there"
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
            if done.returncode:
                lines = (done.stderr or done.stdout).strip().splitlines()
                return None, f"{command[0]} failed: {lines[-1] if lines else done.returncode}"
        stamp.touch()
    if not program.exists():
        return None, f"{agent.package} {agent.version} has no program {agent.program}"
    return program, ""


def _commands(agent: Agent, folder: Path) -> list[list[str]]:
    if agent.registry == "PyPI":
        python = str(folder / "bin" / "python")
        return [
            [sys.executable, "-m", "venv", str(folder)],
            [python, "-m", "pip", "install", "--quiet", f"{agent.package}=={agent.version}"],
        ]
    (folder / "package.json").write_text('{"private": true}\n')
    # With its scripts: some fetch the program out of a package of this platform.
    flags = ["--silent", "--no-audit", "--no-fund"]
    return [["npm", "install", *flags, f"{agent.package}@{agent.version}"]]
