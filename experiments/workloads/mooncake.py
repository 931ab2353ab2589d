"""Mooncake's traces, a request a line, and AIPerf's turns of a session in the same form.

A line has ``input_length`` (with ``hash_ids`` or without), ``text_input``, ``messages`` or a whole
``payload``. Lines of one ``session_id`` follow each other. As in AIPerf, an ``input_length`` or a
``text_input`` then continues the conversation, live answers included; ``messages`` and ``payload``
are the whole prompt. A hash id stands for 512 tokens.

Read and not played: ``extra``; of a payload all but messages, tools, prompt and the most tokens to
answer; and the time of a session's later lines as such. They come ``delay`` after the answer
before, or without one as long after it as the two timestamps are apart.
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
    a_list,
    an_object,
    count,
    seconds,
)
from experiments.workloads.messages import read_messages, read_tools

BLOCK = 512  # tokens that a hash id stands for
PROMPTS = ("input_length", "text_input", "messages", "payload")


@dataclass(frozen=True, eq=False)
class _Request:
    """A line.

    Attributes:
        parts: of its prompt, without what came before.
        num_fixed: tokens of tools and system messages.
        is_whole: whether nothing that came before belongs to its prompt.
        time_s: its timestamp.
        delay_s: from the answer before.
    """

    session: str | None
    parts: tuple[Part, ...]
    num_fixed: int
    is_whole: bool
    num_output: int
    time_s: float | None
    delay_s: float | None


def mooncake_runs(
    records: Mapping[int, dict[str, Any]], prompts: Prompts, faults: Faults
) -> list[Run]:
    """A run for each session, or line that is of none; what is wrong is added to ``faults``.

    Args:
        records: by line.
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
    hashes = a_list(data.get("hash_ids"), "hash_ids")
    if hashes and kind != "input_length":
        raise LineError("hash_ids are of an input_length")
    num_output = DEFAULT_OUTPUT
    parts: tuple[Part, ...]
    if kind == "input_length":
        parts, num_fixed = _blocks(count(data, "input_length"), hashes, prompts), 0
    elif kind == "text_input":
        parts, num_fixed = _user(data["text_input"], "text_input", prompts)
    elif kind == "messages":
        parts, num_fixed = _chat(data, prompts)
    else:
        payload = an_object(data["payload"], "payload")
        is_chat = payload.get("messages") is not None
        parts, num_fixed = (
            _chat(payload, prompts)
            if is_chat
            else _user(payload.get("prompt"), "payload.prompt", prompts)
        )
        num_output = count(payload, "max_tokens", DEFAULT_OUTPUT)
        num_output = count(payload, "max_completion_tokens", num_output)
    return _Request(
        session=_session(data.get("session_id")),
        parts=parts,
        num_fixed=num_fixed,
        is_whole=kind in ("messages", "payload"),
        num_output=count(data, "output_length", num_output),
        time_s=seconds(data, "timestamp"),
        delay_s=seconds(data, "delay"),
    )


def _session(value: Any) -> str | None:
    if not isinstance(value, str | int | None):
        raise LineError("session_id must be a string")
    return None if value is None or value == "" else str(value)


def _blocks(length: int, hashes: list[Any], prompts: Prompts) -> tuple[Part, ...]:
    """A part for each hash id, and one for what they do not reach."""
    if not all(isinstance(one, int | str) for one in hashes):
        raise LineError("hash_ids must be a list of numbers or strings")
    if hashes and (len(hashes) - 1) * BLOCK >= length:
        raise LineError(f"{len(hashes)} hash_ids of {BLOCK} tokens do not fit an input of {length}")
    parts = [prompts.named(BLOCK, str(one)) for one in hashes]
    reached = len(parts) * BLOCK
    if length > reached:
        parts.append(prompts.new(length - reached))
    elif length < reached:
        parts[-1] = parts[-1][: length - reached]
    return tuple(parts)


def _user(text: Any, where: str, prompts: Prompts) -> tuple[tuple[Part, ...], int]:
    if not isinstance(text, str):
        raise LineError(f"{where} must be text")
    message = {"role": "user", "content": text}
    return (read_messages([message], where, prompts.vocab_size).tokens,), 0


def _chat(data: dict[str, Any], prompts: Prompts) -> tuple[tuple[Part, ...], int]:
    """Tools and messages, and how many tokens of them are fixed."""
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
        if request.is_whole or not number:
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
                # Whether a line that is of no session ends anything is not known.
                is_last=request.session is not None and number == len(requests) - 1,
            )
        )
        history, last_s = (*history, number), request.time_s
    start_s = first_s if requests[0].time_s is None else requests[0].time_s
    return Run("trace", f"line{line}", None, tuple(calls), start_s - first_s)
