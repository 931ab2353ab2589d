"""Read Mooncake traces, one request a line, and AIPerf's sessions in the same form.

A line has ``input_length`` (with or without ``hash_ids``), ``text_input``, ``messages`` or a
complete ``payload``. Lines of one ``session_id`` run in sequence. As in AIPerf, an ``input_length``
or a ``text_input`` then continues the conversation, generated outputs included; ``messages`` and
``payload`` are the complete prompt. A hash id stands for 512 tokens.

Read but ignored: ``extra``; all of a payload except messages, tools, prompt and the maximum number
of output tokens; and the absolute time of a session's later lines. Such a line is submitted
``delay`` after the previous output, or else after the difference of the two timestamps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.workloads.base import Call, Part, Prompts, Run
from experiments.workloads.lines import (
    DEFAULT_OUTPUT,
    Faults,
    LineError,
    as_list,
    as_object,
    read_count,
    read_seconds,
)
from experiments.workloads.messages import read_messages, read_tools

BLOCK = 512  # tokens of a hash id
PROMPTS = ("input_length", "text_input", "messages", "payload")


@dataclass(frozen=True, eq=False)
class _Request:
    """The request of a line.

    Attributes:
        parts: parts of the prompt, without the history.
        num_fixed: tokens of tools and system messages.
        is_complete: True if the parts are the complete prompt, without history.
        time_s: timestamp.
        delay_s: delay after the previous output.
    """

    session: str | None
    parts: tuple[Part, ...]
    num_fixed: int
    is_complete: bool
    num_output: int
    time_s: float | None
    delay_s: float | None


def mooncake_runs(
    records: Mapping[int, dict[str, Any]], prompts: Prompts, faults: Faults
) -> list[Run]:
    """Return a run for each session, and for each line without a session.

    Args:
        records: parsed lines, by line number.
        faults: collects the faults of the lines.
    """
    sessions: dict[int | str, list[_Request]] = {}
    first_line: dict[int | str, int] = {}
    for line, record in records.items():
        with faults.of(line):
            request = _request(record, prompts)
            key = line if request.session is None else request.session
            first_line.setdefault(key, line)
            sessions.setdefault(key, []).append(request)
    starts = (requests[0].time_s for requests in sessions.values())
    first_s = min((start for start in starts if start is not None), default=0.0)
    return [_run(first_line[key], requests, first_s) for key, requests in sessions.items()]


def _request(data: dict[str, Any], prompts: Prompts) -> _Request:
    given = [key for key in PROMPTS if data.get(key) is not None]
    if len(given) != 1:
        raise LineError(f"must have one of {', '.join(PROMPTS)}")
    (kind,) = given
    hashes = as_list(data.get("hash_ids"), "hash_ids")
    if hashes and kind != "input_length":
        raise LineError("hash_ids require an input_length")
    num_output = DEFAULT_OUTPUT
    parts: tuple[Part, ...]
    if kind == "input_length":
        parts, num_fixed = _blocks(read_count(data, "input_length"), hashes, prompts), 0
    elif kind == "text_input":
        parts, num_fixed = _user(data["text_input"], "text_input", prompts)
    elif kind == "messages":
        parts, num_fixed = _chat(data, prompts)
    else:
        payload = as_object(data["payload"], "payload")
        is_chat = payload.get("messages") is not None
        parts, num_fixed = (
            _chat(payload, prompts)
            if is_chat
            else _user(payload.get("prompt"), "payload.prompt", prompts)
        )
        num_output = read_count(payload, "max_tokens", DEFAULT_OUTPUT)
        num_output = read_count(payload, "max_completion_tokens", num_output)
    return _Request(
        session=_session(data.get("session_id")),
        parts=parts,
        num_fixed=num_fixed,
        is_complete=kind in ("messages", "payload"),
        num_output=read_count(data, "output_length", num_output),
        time_s=read_seconds(data, "timestamp"),
        delay_s=read_seconds(data, "delay"),
    )


def _session(value: Any) -> str | None:
    if not isinstance(value, str | int | None):
        raise LineError("session_id must be a string")
    return None if value is None or value == "" else str(value)


def _blocks(length: int, hashes: list[Any], prompts: Prompts) -> tuple[Part, ...]:
    """Return a part for each hash id, and one for the tokens after them."""
    if not all(isinstance(hash_id, int | str) for hash_id in hashes):
        raise LineError("hash_ids must be a list of numbers or strings")
    if hashes and (len(hashes) - 1) * BLOCK >= length:
        raise LineError(f"{len(hashes)} hash_ids of {BLOCK} tokens do not fit an input of {length}")
    parts = [prompts.named(BLOCK, str(hash_id)) for hash_id in hashes]
    num_hashed = len(parts) * BLOCK
    if length > num_hashed:
        parts.append(prompts.new(length - num_hashed))
    elif length < num_hashed:
        parts[-1] = parts[-1][: length - num_hashed]
    return tuple(parts)


def _user(text: Any, where: str, prompts: Prompts) -> tuple[tuple[Part, ...], int]:
    if not isinstance(text, str):
        raise LineError(f"{where} must be text")
    message = {"role": "user", "content": text}
    return (read_messages([message], where, prompts.vocab_size).tokens,), 0


def _chat(data: dict[str, Any], prompts: Prompts) -> tuple[tuple[Part, ...], int]:
    """Return the tokens of tools and messages, and the number of their fixed tokens."""
    tools = read_tools(data.get("tools"), "tools", prompts.vocab_size)
    messages = read_messages(data["messages"], "messages", prompts.vocab_size)
    if tools is None:
        return (messages.tokens,), messages.num_system
    return (tools, messages.tokens), len(tools) + messages.num_system


def _run(line: int, requests: Sequence[_Request], first_s: float) -> Run:
    calls: list[Call] = []
    history: tuple[Part, ...] = ()
    num_fixed = 0
    last_s: float | None = None
    for number, request in enumerate(requests):
        if request.is_complete or not number:
            history, num_fixed = (), request.num_fixed
        history = (*history, *request.parts)
        pause_s = request.delay_s
        if pause_s is None and request.time_s is not None and last_s is not None:
            pause_s = max(0.0, request.time_s - last_s)
        calls.append(
            Call(
                "" if request.session is None else "trace",
                history,
                num_fixed,
                request.num_output,
                (number - 1,) if number else (),
                pause_s or 0.0,
                session=request.session,
                # It is unknown whether a line without a session is the last of anything.
                is_last=request.session is not None and number == len(requests) - 1,
            )
        )
        history, last_s = (*history, number), request.time_s
    start_s = first_s if requests[0].time_s is None else requests[0].time_s
    return Run("trace", f"line{line}", None, tuple(calls), start_s - first_s)
