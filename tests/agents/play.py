"""Plays an agent in a folder and a home of its own, against a model that is served."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.agents.agent import AFTER, BEFORE, MORE, NOTE, TASK, Agent
from tests.agents.recorder import Exchange, Recorder
from tests.agents.recording import HOME, WORK
from tests.agents.served_model import ServedModel

TIMEOUT_S = 240


@dataclass
class Played:
    """What came of it: the note afterwards, the exchanges, and what the agent printed.

    Attributes:
        exit_codes: of each run; negative: it was ended after its time.
        replaced: texts of this run, and what a recording has for them.
    """

    note: str
    exchanges: list[Exchange]
    exit_codes: list[int]
    printed: str
    replaced: dict[str, str]

    @property
    def is_edited(self) -> bool:
        return self.note == AFTER


def play(
    agent: Agent, program: Path, space: Path, model: ServedModel, *, is_wary: bool = False
) -> Played:
    """Return what happened.

    Args:
        space: an empty folder, where the agent's home and its work are.
        is_wary: the model is a real one, whose calls may do harm. The agent runs twice then, the
            second time with the session of the first, if it can go on with one.
    """
    folder, home = space / "work", space / "home"
    folder.mkdir()
    home.mkdir()
    (folder / NOTE).write_text(BEFORE)
    model.cast(agent, str(folder))
    runs: list[tuple[Sequence[str], str]] = [(agent.arguments, TASK)]
    if is_wary:
        wary = agent.wary_arguments or agent.arguments
        resuming = agent.resuming_arguments
        runs = [(wary, TASK), (resuming, MORE) if resuming else (wary, TASK)]
    with Recorder(model.url) as recorder:
        values = {"url": recorder.url, "folder": str(folder), "home": str(home)}
        for path, text in agent.files.items():
            file = Path(_filled(path, values))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_filled(text, values))
        # Nothing of the environment around: an agent would find keys and servers there.
        environment = {
            "PATH": os.pathsep.join([str(program.parent), os.environ["PATH"]]),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "NO_COLOR": "1",
        }
        environment |= {name: _filled(value, values) for name, value in agent.environment.items()}
        printed, exit_codes = "", []
        for arguments, task in [*((before, "") for before in agent.before), *runs]:
            filled = [_filled(argument, {**values, "task": task}) for argument in arguments]
            exit_code, text = _run([str(program), *filled], folder, environment)
            exit_codes.append(exit_code)
            printed += text
        _end_daemons(home)
    replaced = {str(folder): WORK, str(home): HOME, recorder.url: "http://127.0.0.1:8000"}
    return Played((folder / NOTE).read_text(), recorder.exchanges, exit_codes, printed, replaced)


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _end_daemons(home: Path) -> None:
    """End what an agent has left running: Cline's hub, which no other run may find."""
    mark = f"HOME={home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            printed += f"\n[ended after {TIMEOUT_S} s]\n"
    return process.returncode, printed
