"""What an agent sent and got, kept as a file: personal details replaced, long texts shortened."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.agents.agent import SUBTASK, SUMMARY, TASK
from tests.agents.recorder import Exchange

FOLDER = Path(__file__).parent / "recorded"
WORK, HOME = "/space/work", "/space/home"  # in recordings

# Prompts are their makers' texts. Tests need where each is and how it ends, whether two are the
# same, and what the scripted model reads in them.
_LONGEST, _BEGIN, _END = 200, 100, 40
_TEXTS = {"messages", "input", "system", "instructions", "tools"}
_HEADERS = {"host", "content-length", "connection", "accept-encoding", "transfer-encoding"}
_IDS = (
    re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
    re.compile(r"(?<=ses_)[0-9A-Za-z]{20,}"),
    re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])"),
    re.compile(r"(?<=call_)[0-9a-f]{24}"),
    re.compile(r"(?<=toolu_)[0-9A-Za-z]{20,}"),
)


def write_recording(
    agent: str, version: str, exchanges: Sequence[Exchange], replaced: Mapping[str, str]
) -> Path:
    """Write what passed; a field of a body that is as in the request before is written once.

    Args:
        replaced: texts that name this machine or its user, and what is written for them.
    """
    known: dict[str, dict[str, Any]] = {}  # by path: the fields last sent there
    written = []
    for exchange in exchanges:
        value = _anonymous(asdict(exchange), replaced)
        del value["first_byte_s"]  # another in each play
        value["headers"] = {
            name: text for name, text in value["headers"].items() if name not in _HEADERS
        }
        body = value["body"]
        if isinstance(body, dict):
            body |= {name: _shortened(body[name]) for name in _TEXTS & body.keys()}
            last = known.get(exchange.path, {})
            value["same"] = sorted(name for name in body if last.get(name) == body[name])
            known[exchange.path] = dict(body)
            value["body"] = {name: body[name] for name in body if name not in value["same"]}
        written.append(value)
    path = FOLDER / f"{agent}.json"
    content = {"agent": agent, "version": version, "exchanges": written}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def read_recording(path: Path) -> list[Exchange]:
    """Return the exchanges of a recording."""
    known: dict[str, dict[str, Any]] = {}
    exchanges = []
    for value in json.loads(path.read_text())["exchanges"]:
        same = value.pop("same", None)
        exchange = Exchange(**value)
        if same is not None:
            exchange.body |= {name: known[exchange.path][name] for name in same}
            known[exchange.path] = exchange.body
        exchanges.append(exchange)
    return exchanges


def _anonymous(value: Any, replaced: Mapping[str, str]) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    names = {platform.node(): "host", platform.release(): "kernel", platform.version(): "build"}
    for name, other in {**replaced, **names}.items():
        text = text.replace(name, other)
    for pattern in _IDS:
        text = pattern.sub(_other_id, text)
    # Unix times in milliseconds.
    text = re.sub(r"(?<!\d)1[6-9]\d{11}(?!\d)", "1700000000000", text)
    return json.loads(text)


def _other_id(match: re.Match[str]) -> str:
    """Return an id of the same form, the same for the same id."""
    digest = hashlib.sha256(match[0].encode()).hexdigest()
    letters = iter(digest)
    return "".join(next(letters) if letter != "-" else "-" for letter in match[0])


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shortened(part) for part in value]
    if not isinstance(value, str) or len(value) <= _LONGEST:
        return value
    middle = value[_BEGIN:-_END]
    digest = hashlib.sha256(middle.encode()).hexdigest()[:8]
    begin, end = value[:_BEGIN], value[-_END:]
    kept = [text for text in (TASK, SUBTASK, SUMMARY) if text in value]
    kept = [text for text in kept if text not in begin and text not in end]
    left_out = "; ".join([digest, *kept])
    return f"{begin} [{len(middle)} characters left out: {left_out}] {end}"
