"""The identity that clients send anyway, in headers or bodies: sessions, subagents, compaction.

    headers, fields of the body ──▶ one of _CLIENTS ──▶ _Session ──▶ Hints (where there are none)
    tools, system text, first message ──▶ role and conversation

Ids of a coding agent name one conversation. Others, such as ``prompt_cache_key``, may be shared by
many: with them, the first message tells conversations apart. Where there is no id, the first call
of a tool in the history is one: it has the id that an earlier answer gave it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from kvflow_jax.serve.client_ids import MAX_ID_CHARS, ClientIds
from kvflow_jax.workflow.hints import Hints

_MAX_ROLE_CHARS = _MAX_MESSAGE_CHARS = 1 << 12
_MAX_TOOLS = 64
_MAX_GENERATION_DIGITS = 9
# Words that begin so are left out of roles: a day or month may be any of them.
_CALENDAR = (
    *("mon", "tue", "wed", "thu", "fri", "sat", "sun"),
    *("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
)
_HALF_DAYS = ("AM", "PM", "AM.", "PM.", "AM,", "PM,")


class IdentitySource(StrEnum):
    """Whose ids identify a request."""

    CLAUDE_CODE = "claude_code"
    CODEX = "codex"
    OPENCODE = "opencode"
    DYNAMO = "dynamo"
    SESSION_HEADER = "session_header"
    BODY = "body"  # ``prompt_cache_key``, ``metadata.session_id`` and the like
    CALLS = "calls"  # the first call of a tool in the history
    INVALID = "invalid"  # there was an id, and it was empty or too long


# Agents whose calls without tools may ask for a title of the session, under its id.
_WRITING_TITLES = (IdentitySource.CLAUDE_CODE, IdentitySource.CODEX, IdentitySource.OPENCODE)


@dataclass(frozen=True, slots=True)
class _Session:
    """A session as its client names it.

    Attributes:
        root: the session that contains it; None: it is a root itself.
        parent: the session that waits for it; None, or its own name: none does.
        is_shared: whether several conversations may have its name.
    """

    source: IdentitySource
    name: str
    root: str | None = None
    parent: str | None = None
    generation: int | None = None
    is_final: bool = False
    is_shared: bool = False


class Identified(NamedTuple):
    """An identity and its source.

    Attributes:
        identity: the run, which is the root session with all subagents; the agent, which is a role;
            the session, which is one conversation, None for a call that nothing will continue. None
            if the client's id is invalid.
    """

    source: IdentitySource
    identity: Hints | None


def read_identity(
    headers: Mapping[str, str],
    fields: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    tool_names: Sequence[str],
) -> Identified | None:
    """Return the identity of a chat; None if its client sends none.

    Args:
        headers: of the request, by name in lower case.
        fields: of the body, as the client sent them.
        messages: as ``read_messages`` returns them.
    """
    ids = ClientIds(headers, fields)
    session = _named_session(ids)
    if session is None and ids.has_invalid:
        return Identified(IdentitySource.INVALID, None)
    session = session or _of_first_call(ids, messages)
    if session is None:
        return None
    role = _role(messages, tool_names)
    is_run = session.source is not IdentitySource.CALLS
    root = (session.root or session.name) if is_run else None
    name: str | None = session.name
    parent = None if session.parent == name else session.parent
    if session.is_shared:
        name = f"{name}#{role}{_digest(_first_text(messages)[:_MAX_MESSAGE_CHARS])}"
    elif (
        session.source in _WRITING_TITLES
        and parent is None
        and not tool_names
        and not _is_continued(messages)
    ):
        name = None  # nothing continues a title
    identity = Hints(
        workflow_id=root,
        agent_id=f"{session.source}:{role}",
        session_id=name,
        session_final=session.is_final,
        parent_session_id=parent,
        session_generation=None if name is None else session.generation,
    )
    return Identified(session.source, identity)


def read_root_session(headers: Mapping[str, str], fields: Mapping[str, Any]) -> str | None:
    """Return the session that contains all others of a run; None if the client names none.

    ``prompt_cache_key`` names none: requests of many runs may share it.

    Args:
        headers, fields: see ``read_identity``.
    """
    names = {name: value for name, value in fields.items() if name != "prompt_cache_key"}
    session = _named_session(ClientIds(headers, names))
    return None if session is None else session.root or session.name


def _named_session(ids: ClientIds) -> _Session | None:
    return next((found for read in _CLIENTS if (found := read(ids)) is not None), None)


def _claude_code(ids: ClientIds) -> _Session | None:
    source = IdentitySource.CLAUDE_CODE
    root = ids.header("x-claude-code-session-id")
    if root is None:
        # Its subagents have the same name there.
        root = _session_of_user(ids)
        return None if root is None else _Session(source, root, is_shared=True)
    agent = ids.header("x-claude-code-agent-id")
    parent = ids.header("x-claude-code-parent-agent-id")
    if agent is None or agent == root:
        return _Session(source, root)
    is_of_main = parent in (None, root, agent)
    return _Session(source, f"{root}/{agent}", root, root if is_of_main else f"{root}/{parent}")


def _session_of_user(ids: ClientIds) -> str | None:
    """Return the session in ``metadata.user_id``: in its JSON, or at the end of its text."""
    user_id = ids.value("metadata", "user_id")
    if not isinstance(user_id, str):
        return None
    if user_id.startswith("{"):
        return ids.read(ids.json(user_id).get("session_id"))
    _, mark, session = user_id[-2 * MAX_ID_CHARS :].rpartition("_session_")
    return ids.read(session) if mark else None


def _codex(ids: ClientIds) -> _Session | None:
    def find(*names: str) -> str | None:
        fields = (ids.field("client_metadata", name) for name in names)
        return ids.header(*names) or next(filter(None, fields), None)

    window = find("x-codex-window-id")
    thread, _, number = (window or "").rpartition(":")
    has_number = bool(thread) and number.isascii() and number.isdigit()
    has_number = has_number and len(number) <= _MAX_GENERATION_DIGITS
    thread = (thread if has_number else "") or find("thread-id", "thread_id") or ""
    session = ids.field("client_metadata", "session_id")
    parent = find("x-codex-parent-thread-id", "parent_thread_id")
    if parent is None:
        turn = ids.value("client_metadata", "x-codex-turn-metadata")
        parent = ids.read(ids.json(turn).get("parent_thread_id"))
    if not thread and session is None:
        return None
    if thread:
        session = ids.header("session-id", "session_id") or session
    name = thread or session or ""
    return _Session(
        IdentitySource.CODEX,
        name,
        session or parent,
        parent,
        int(number) if has_number else None,
    )


def _opencode(ids: ClientIds) -> _Session | None:
    session = ids.header("x-session-affinity")
    if session is None and (ids.is_from("opencode") or ids.has_header("x-parent-session-id")):
        session = ids.header("x-session-id")
    if session is None:
        return None
    # The root of all, not the session that called this one; that is the same for most.
    parent = ids.header("x-parent-session-id")
    return _Session(IdentitySource.OPENCODE, session, parent, parent)


def _dynamo(ids: ClientIds) -> _Session | None:
    session = ids.header("x-dynamo-session-id")
    if session is None:
        return None
    parent = ids.header("x-dynamo-parent-session-id")
    is_final = ids.flag("x-dynamo-session-final")
    return _Session(IdentitySource.DYNAMO, session, parent, parent, is_final=is_final)


def _other(ids: ClientIds) -> _Session | None:
    session = ids.header("x-session-id", "session-id", "session_id", "x-task-id")
    source = IdentitySource.SESSION_HEADER
    if session is None:
        source = IdentitySource.BODY
        paths = (
            ("prompt_cache_key",),
            ("session_id",),
            *(("metadata", name) for name in ("session_id", "sessionId", "conversation_id")),
            ("client_metadata", "session_id"),
        )
        session = next((found for path in paths if (found := ids.field(*path))), None)
    if session is None:
        return None
    return _Session(source, session, is_final=ids.flag("x-session-final"), is_shared=True)


def _of_first_call(ids: ClientIds, messages: Sequence[Mapping[str, Any]]) -> _Session | None:
    calls = (call for message in messages for call in message.get("tool_calls", ()))
    first = next(calls, None)
    name = None if first is None else ids.read(first.get("id"))
    # Some clients number their calls.
    return None if name is None else _Session(IdentitySource.CALLS, name, is_shared=True)


_CLIENTS = (_claude_code, _codex, _opencode, _dynamo, _other)


def _role(messages: Sequence[Mapping[str, Any]], tool_names: Sequence[str]) -> str:
    """Return a digest of what an agent's instructions begin with, else of its tools.

    Dates, paths and ids are left out: they differ between the sessions of one role. So may tools,
    some of which agents load when they need them.
    """
    words = _system_text(messages)[:_MAX_ROLE_CHARS].split()
    kept = [word for word in words if not _is_variable(word)]
    return _digest(" ".join(kept or sorted(tool_names)[:_MAX_TOOLS]) + "+" * bool(tool_names))


def _is_variable(word: str) -> bool:
    """True for a number, a date, a path or an id."""
    return (
        "/" in word
        or "\\" in word
        or word.lower().lstrip("(").startswith(_CALENDAR)
        or word.upper() in _HALF_DAYS
        or any(map(str.isdigit, word))
    )


def _system_text(messages: Sequence[Mapping[str, Any]]) -> str:
    if messages and messages[0]["role"] == "system":
        return str(messages[0]["content"])
    return ""


def _first_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the first text that is not of the system."""
    texts: Iterator[str] = (str(m["content"]) for m in messages if m["role"] != "system")
    return next(texts, "")


def _is_continued(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(message["role"] == "assistant" for message in messages)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=4).hexdigest()
