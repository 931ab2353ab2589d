"""Plays an agent once, in a folder and a home of its own, against a scripted model."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.agents.agent import AFTER, BEFORE, NOTE, TASK, Agent
from tests.agents.recorder import Exchange, Recorder
from tests.agents.recording import HOME, WORK
from tests.support.scripted_runner import scripted_server

TIMEOUT_S = 240
# A byte is a token of the scripted model, so that the largest first prompt has 120 thousand.
CONTEXT = 1 << 19
NUM_PAGES = CONTEXT // 16 + 4096


@dataclass
class Played:
    """What came of it: the note afterwards, the exchanges, and what the agent printed."""

    note: str
    exchanges: list[Exchange]
    exit_code: int
    printed: str
    replaced: dict[str, str]  # texts of this run, and what a recording has for them

    @property
    def is_edited(self) -> bool:
        return self.note == AFTER


def play(agent: Agent, program: Path, space: Path) -> Played:
    """Return what happened.

    Args:
        space: an empty folder, where the agent's home and its work are.
    """
    folder, home = space / "work", space / "home"
    folder.mkdir()
    home.mkdir()
    (folder / NOTE).write_text(BEFORE)
    with (
        scripted_server(max_model_len=CONTEXT, num_pages=NUM_PAGES) as server,
        Recorder(server.url) as recorder,
    ):
        server.runner.answer = lambda prompt: agent.answer(prompt, str(folder))
        values = {"url": recorder.url, "folder": str(folder), "home": str(home), "task": TASK}

        def filled(text: str) -> str:
            for name, value in values.items():
                text = text.replace(f"{{{name}}}", value)
            return text

        for path, text in agent.files.items():
            file = Path(filled(path))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(filled(text))
        # Nothing of the environment around: an agent would find keys and servers there.
        environment = {
            "PATH": os.pathsep.join([str(program.parent), os.environ["PATH"]]),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "NO_COLOR": "1",
        }
        environment |= {name: filled(value) for name, value in agent.environment.items()}
        printed, exit_code = "", 0
        for arguments in (*agent.before, agent.arguments):
            command = [str(program), *map(filled, arguments)]
            exit_code, text = _run(command, folder, environment)
            printed += text
        _end_daemons(home)
    replaced = {str(folder): WORK, str(home): HOME, recorder.url: "http://127.0.0.1:8000"}
    return Played((folder / NOTE).read_text(), recorder.exchanges, exit_code, printed, replaced)


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
