"""A coding agent: where it comes from, how it is started, and what its model answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TASK = "Correct the number in note.txt, then say that it is done."
NOTE = "note.txt"
BEFORE, AFTER = "The answer is forty-one.\n", "The answer is forty-two.\n"
WRONG, RIGHT = "forty-one", "forty-two"
DONE = "The note is correct now."


@dataclass(frozen=True)
class Call:
    """A call of one of the agent's tools; ``{folder}`` in a value is the folder it works in."""

    tool: str
    arguments: Mapping[str, Any]

    def text(self, folder: str) -> str:
        """Return the call as the model writes it."""
        body = json.dumps({"name": self.tool, "arguments": self.arguments}, ensure_ascii=False)
        return f"<tool_call>\n{body.replace('{folder}', folder)}\n</tool_call>"


@dataclass(frozen=True)
class Agent:
    """A coding agent.

    In its arguments, environment and files, ``{url}`` is the server's without /v1, ``{folder}``
    the folder it works in, ``{home}`` its home and ``{task}`` what it shall do.

    Attributes:
        registry: where its package is.
        program: its executable.
        calls: what the model calls, a call a turn: to read the note and to edit it. After these it
            says ``DONE``, unless the last call ends the session.
        before: arguments of runs of the program before this one, to configure it.
        files: path and text of the files that configure it.
    """

    name: str
    registry: Literal["npm", "PyPI"]
    package: str
    version: str
    program: str
    arguments: tuple[str, ...]
    calls: tuple[Call, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    before: tuple[tuple[str, ...], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def answer(self, prompt: str, folder: str) -> str:
        """Return what the model answers to a prompt.

        A prompt without tools asks for something beside the task: a title, a summary.
        """
        if "<tools>" not in prompt or TASK not in prompt:
            return "Correct a number"
        turn = prompt.rpartition(TASK)[2].count("<tool_response>")
        return self.calls[turn].text(folder) if turn < len(self.calls) else DONE
