"""A program of a few lines is played as the agents are."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.agent import AFTER, DONE, MORE, TASK, Agent, Call
from tests.agents.play import play
from tests.agents.problems import problems_of_script
from tests.agents.recorder import threads_of
from tests.agents.served_model import ServedModel, serve_scripted

TIMEOUT_S = 60  # the daemon sleeps for an hour

PROGRAM = """#!{python}
import json, subprocess, sys, urllib.request
url, task = sys.argv[1:]
subprocess.Popen(["sleep", "3600"], start_new_session=True, stdout=open("{fifo}", "w"), stderr=-3)
tool = {"type": "function", "function": {"name": "write", "parameters": {"type": "object"}}}
messages = [{"role": "user", "content": task}]
while True:
    body = {"model": "scripted", "messages": messages, "tools": [tool]}
    headers = {"Content-Type": "application/json"}
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", data, headers)
    message = json.load(urllib.request.urlopen(request))["choices"][0]["message"]
    messages.append(message)
    calls = message.get("tool_calls")
    if not calls:
        print(message["content"])
        break
    open("note.txt", "w").write(json.loads(calls[0]["function"]["arguments"])["text"])
    messages.append({"role": "tool", "tool_call_id": calls[0]["id"], "content": "written"})
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "agent"
    text = PROGRAM.replace("{python}", sys.executable)
    path.write_text(text.replace("{fifo}", str(tmp_path / "fifo")))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def scripted() -> Iterator[ServedModel]:
    with serve_scripted() as model:
        yield model


def agent_of(**fields: object) -> Agent:
    return Agent(
        *("one", "npm", "one", "1.0", "agent", ("{url}", "{task}")),
        calls=(Call("write", {"text": AFTER}),),
        files={"{home}/config": "{url}/v1"},
        **fields,
    )


def test_the_note_the_exchanges_and_the_output_are_kept(
    program: Path, tmp_path: Path, scripted: ServedModel
) -> None:
    space = tmp_path / "space"
    space.mkdir()
    daemon = make_fifo(tmp_path)
    played = play(agent_of(), program, space, scripted)
    assert played.is_edited
    assert (played.exit_codes, played.printed.strip()) == ([0], DONE)
    assert problems_of_script(played) == []
    ((first, second),) = threads_of(played.exchanges)
    assert first.answer["calls"] == [["write", {"text": AFTER}]]
    assert second.body["messages"][-1]["content"] == "written"
    assert second.answer["cached"] >= 0.95 * first.answer["prompt"]
    recorded_url = next(url for url, name in played.replaced.items() if name.startswith("http"))
    assert (space / "home" / "config").read_text() == f"{recorded_url}/v1"
    # Readable at the end of the daemon, which holds the other end of the pipe.
    assert select.select([daemon], [], [], TIMEOUT_S)[0]
    os.close(daemon)


def make_fifo(tmp_path: Path) -> int:
    os.mkfifo(tmp_path / "fifo")
    return os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)


def test_a_wary_play_resumes_the_session_with_other_arguments(
    program: Path, tmp_path: Path, scripted: ServedModel
) -> None:
    space = tmp_path / "space"
    space.mkdir()
    daemon = make_fifo(tmp_path)
    agent = agent_of(resuming_arguments=("{url}", "{task} Again."))
    played = play(agent, program, space, scripted, is_wary=True)
    asked = [one.body["messages"][0]["content"] for one in played.exchanges]
    assert asked == [TASK, TASK, f"{MORE} Again."]
    assert played.exit_codes == [0, 0]
    os.close(daemon)
