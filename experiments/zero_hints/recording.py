"""Calls of agents of several runs that were served at the same time, kept as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Call:
    """A call of an agent and the answer that it got.

    Attributes:
        run, agent: whose call it is; known from the URL that it was sent to.
        begin_s, end_s: when it was received and when it was answered, from the first call on.
        messages, tools: of the body.
        answer: its text; of tool calls, their functions in JSON.
        prompt_ids: tokens of the prompt as the server rendered it.
        answer_ids: tokens that were generated; other than the answer's text, they end with the
            control token that ended them.
        num_system: tokens of the prompt's system messages and tools; None: it has none.
        app: name of the recording.
    """

    run: str
    agent: str
    begin_s: float
    end_s: float
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    answer: str
    prompt_ids: list[int]
    answer_ids: list[int]
    num_system: int | None = None
    app: str = ""


def write_recording(path: Path, versions: str, calls: Sequence[Call]) -> None:
    """Write calls in the order in which they began; texts that occur again are written once.

    Args:
        versions: the framework and the version that made the calls.
    """
    calls = sorted(calls, key=lambda call: call.begin_s)
    zero = calls[0].begin_s
    texts: dict[str, int] = {}
    written = []
    for index, call in enumerate(calls):
        base, num_same = max(
            (
                (-other, common_len(calls[other].prompt_ids, call.prompt_ids))
                for other in range(index)
            ),
            key=lambda one: (one[1], one[0]),
            default=(0, 0),
        )
        written.append(
            {
                "run": call.run,
                "agent": call.agent,
                "begin_s": round(call.begin_s - zero, 3),
                "end_s": round(call.end_s - zero, 3),
                "messages": [texts.setdefault(_dumps(one), len(texts)) for one in call.messages],
                "tools": [texts.setdefault(_dumps(one), len(texts)) for one in call.tools],
                "answer": call.answer,
                "prompt_ids": [-base, num_same, *call.prompt_ids[num_same:]],
                "answer_ids": call.answer_ids,
                "num_system": call.num_system,
            }
        )
    lines = ",\n".join(_dumps(one) for one in written)
    head = f'{{"versions": {_dumps(versions)},\n"texts": [\n'
    path.write_text(head + ",\n".join(texts) + f'],\n"calls": [\n{lines}]}}\n')


def read_recording(path: Path) -> list[Call]:
    """Return the calls of a recording, in the order in which they began."""
    content = json.loads(path.read_text())
    texts = content["texts"]
    calls: list[Call] = []
    for value in content["calls"]:
        call = Call(**value)
        base, num_same, *rest = call.prompt_ids
        same = calls[base].prompt_ids[:num_same] if num_same else []
        calls.append(
            replace(
                call,
                messages=[texts[number] for number in value["messages"]],
                tools=[texts[number] for number in value["tools"]],
                prompt_ids=same + rest,
                app=path.stem,
            )
        )
    return calls


def common_len(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two lists of tokens."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
