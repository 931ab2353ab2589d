from __future__ import annotations

import json

import pytest

from tests.agents import recording
from tests.agents.agent import SUMMARY
from tests.agents.recorder import Exchange

SESSION = "0a1b2c3d-1111-2222-3333-444455556666"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "FOLDER", tmp_path)
    return tmp_path


def exchange(**body):
    headers = {"x-session-id": SESSION, "host": "127.0.0.1:1"}
    return Exchange("POST", "/v1/messages", headers, body, 200, {"text": "ok"})


def test_fields_as_in_the_request_before_are_written_once_and_read_back(folder):
    tools = [{"name": "read"}]
    exchanges = [exchange(tools=tools, messages=["a"]), exchange(tools=tools, messages=["a", "b"])]
    path = recording.write_recording("one", "1.0", exchanges, {})
    assert [sorted(one["body"]) for one in json.loads(path.read_text())["exchanges"]] == [
        ["messages", "tools"],
        ["messages"],
    ]
    bodies = [one.body for one in recording.read_recording(path)]
    assert bodies == [one.body for one in exchanges]


def test_ids_and_paths_are_replaced_the_same_everywhere(folder):
    sent = exchange(metadata={"session": SESSION}, messages=["in /tmp/abc/work"])
    path = recording.write_recording("one", "1.0", [sent], {"/tmp/abc/work": recording.WORK})
    (read,) = recording.read_recording(path)
    assert read.headers.keys() == {"x-session-id"}
    assert read.headers["x-session-id"] == read.body["metadata"]["session"] != SESSION
    assert read.body["messages"] == [f"in {recording.WORK}"]


def test_long_texts_are_shortened_so_that_others_stay_others(folder):
    texts = ["begin " + middle * 1000 + SUMMARY + middle * 99 + " end" for middle in "ab"]
    path = recording.write_recording("one", "1.0", [exchange(messages=texts)], {})
    first, second = recording.read_recording(path)[0].body["messages"]
    assert first != second
    for text in (first, second):
        assert text.startswith("begin ")
        assert text.endswith(" end")
        assert SUMMARY in text
        assert len(text) < 250 + len(SUMMARY)
