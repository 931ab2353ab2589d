"""A coding agent: where it comes from, how it is started, and what its model answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TASK = "Correct the number in note.txt, then say that it is done."
NOTE = "note.txt"
BEFORE, AFTER = "The answer is forty-one.\n", "The answer is forty-two.\n"
WRONG, RIGHT = "forty-one", "forty-two"
DONE = "The note is correct now."
MORE = "Say it once more."  # what a session that is resumed is asked
SUBTASK = "Say which number is in note.txt."  # what a subagent is asked
SUBAGENT_DONE = "The number is forty-one."
SUMMARY = "The note says forty-one, and shall say forty-two."  # of a session that is compacted

# Of a subagent, in the result of the call that started it.
_AGENT_ID = re.compile(r"agent_id\W+([0-9a-f-]{36})")


@dataclass(frozen=True)
class Call:
    """A call of one of the agent's tools.

    In its values ``{folder}`` is the folder it works in, ``{agent_id}`` the last subagent's id.
    """

    tool: str
    arguments: Mapping[str, Any]

    def text(self, folder: str, prompt: str = "") -> str:
        """Return the call as the model writes it after a prompt."""
        body = json.dumps({"name": self.tool, "arguments": self.arguments}, ensure_ascii=False)
        if "{agent_id}" in body and (ids := _AGENT_ID.findall(prompt)):
            body = body.replace("{agent_id}", ids[-1])
        return f"<tool_call>\n{body.replace('{folder}', folder)}\n</tool_call>"


@dataclass(frozen=True)
class Agent:
    """A coding agent.

    In its arguments, environment and files, ``{url}`` is the server's without /v1, ``{folder}``
    the folder it works in, ``{home}`` its home and ``{task}`` what it shall do.

    A model of an engine may call any tool: its arguments are others, which let an agent read, and
    write at most in its folder.

    Attributes:
        registry: where its package is.
        program: its executable.
        calls: what the model calls, a call a turn: to read the note and to edit it. After these it
            says ``DONE``, unless the last call ends the session.
        subagent_calls: what the model calls as a subagent, before it says ``SUBAGENT_DONE``.
        before: arguments of runs of the program before this one, to configure it.
        files: path and text of the files that configure it.
        compaction: what the agent says when it wants a summary of the session, which it then goes
            on with in place of its history; "": the session stays within its context.
        calls_after_summary: what the model calls in the session that goes on from the summary.
        wary_arguments: for a real model, whose calls may do harm.
        resuming_arguments: for such a model, to go on with the last session; none: a second run
            begins anew.
        session_source: whose session ids it sends, as the server counts them; "": it sends none.
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
    subagent_calls: tuple[Call, ...] = ()
    compaction: str = ""
    calls_after_summary: tuple[Call, ...] = ()
    wary_arguments: tuple[str, ...] = ()
    resuming_arguments: tuple[str, ...] = ()
    session_source: str = ""

    def answer(self, prompt: str, folder: str) -> str:
        """Return what the model answers to a prompt.

        A prompt without tools asks for something beside the task: a title, a summary.
        """
        if self.compaction and self.compaction in prompt:
            return f"<summary>\n{SUMMARY}\n</summary>"
        asked, calls, last = TASK, self.calls, DONE
        if SUMMARY in prompt:
            asked, calls = SUMMARY, self.calls_after_summary
        elif TASK not in prompt and SUBTASK in prompt:
            asked, calls, last = SUBTASK, self.subagent_calls, SUBAGENT_DONE
        if "<tools>" not in prompt or asked not in prompt:
            return "Correct a number"
        turn = prompt.rpartition(asked)[2].count("<tool_response>")
        return calls[turn].text(folder, prompt) if turn < len(calls) else last
