"""A program of a few lines is played as the agents are."""

from __future__ import annotations

import os
import select
import sys
from pathlib import Path

import pytest

from tests.agents.agent import AFTER, DONE, Agent, Call
from tests.agents.play import play
from tests.agents.recorder import threads_of

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


def test_the_note_the_exchanges_and_the_output_are_kept(program: Path, tmp_path: Path) -> None:
    space = tmp_path / "space"
    space.mkdir()
    os.mkfifo(tmp_path / "fifo")
    daemon = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    agent = Agent(
        *("one", "npm", "one", "1.0", "agent", ("{url}", "{task}")),
        calls=(Call("write", {"text": AFTER}),),
        files={"{home}/config": "{url}/v1"},
    )
    played = play(agent, program, space)
    assert played.is_edited
    assert (played.exit_code, played.printed.strip()) == (0, DONE)
    ((first, second),) = threads_of(played.exchanges)
    assert first.answer["calls"] == [["write", {"text": AFTER}]]
    assert second.body["messages"][-1]["content"] == "written"
    assert second.answer["cached"] >= 0.95 * first.answer["prompt"]
    recorded_url = next(url for url, name in played.replaced.items() if name.startswith("http"))
    assert (space / "home" / "config").read_text() == f"{recorded_url}/v1"
    # Readable at the end of the daemon, which holds the other end of the pipe.
    assert select.select([daemon], [], [], TIMEOUT_S)[0]
    os.close(daemon)
