"""Play the apps against the embedded model and write the recordings.

    python -m tests.recorded_runs ENVIRONMENT             # all apps
    python -m tests.recorded_runs ENVIRONMENT autogen     # those whose name contains it

ENVIRONMENT is the one that ``make clients`` makes for openai 3: it has the frameworks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import httpx

from experiments.zero_hints.recording import FOLDER, Call, common_len, write_recording
from tests.recorded_runs.labelling_proxy import labelling_proxy
from tests.support.served import embedded_server

ROOT = Path(__file__).parents[2]
CODE = [
    "Sort a list of the names of readers by their last name.",
    "Count how often each word occurs in a text file.",
    "Find the books that are overdue on a given day.",
    "Turn a price in cents into text with a currency sign.",
]
QUESTIONS = [
    "Why is the sky blue, and why is it red in the evening?",
    "How did people store food before there were refrigerators?",
    "What makes bread rise, and what makes it stale?",
    "Why do ships of steel float, and why do some sink?",
]
HOUSES = [
    "My kitchen is old and I would like new shelves for the pots.",
    "The roof of my garden shed leaks. What should we do about it?",
    "Our children need a bed under the roof. How should it be built?",
    "The stairs to our cellar are steep. How can they be made safe?",
]
ROOMS = [
    "I want to turn the attic into a study with a large window.",
    "The floor of our bathroom creaks near the tub. Can you mend it?",
    "My front door sticks whenever it rains. What is the reason?",
    "We want to take down the wall between the hall and the parlour.",
]
TRIPS = [
    "Please plan two days in Norway with small children.",
    "I would like to spend a weekend in Vienna and go there by train.",
    "Where can we go in the south of Spain for a week in winter?",
    "We have three days and bicycles, and start in Cologne.",
]
POEMS = [
    "A cat in the rain",
    "The last bus home",
    "A letter from the sea",
    "Snow in the month of May",
]
# By name: the packages whose versions are written down, and the tasks of its runs.
APPS = {
    "langgraph_team": ("langgraph", CODE),
    "langgraph_research": ("langgraph", QUESTIONS),
    "autogen_teams": ("autogen-agentchat", HOUSES + ROOMS),
    "adk_teams": ("google-adk", TRIPS + POEMS),
}


def record(app: str, python: Path, server_url: str) -> None:
    """Play the runs of an app at the same time and write their calls."""
    package, tasks = APPS[app]
    module = f"{__package__}.apps.{app}"
    with labelling_proxy(server_url) as proxy:
        subprocess.run([python, "-m", module, proxy.url, *tasks], cwd=ROOT, check=True, timeout=900)
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    version = subprocess.check_output([python, "-c", ask], text=True).strip()
    calls = [with_num_system(call, server_url) for call in proxy.calls]
    write_recording(FOLDER / f"{app}.json", f"{package} {version}", calls)
    runs = {call.run for call in calls}
    print(f"{app}: {len(runs)} runs, {len(calls)} calls", flush=True)


def with_num_system(call: Call, server_url: str) -> Call:
    """Return a call with the length of its system messages, as the server writes them."""
    roles = ("system", "developer")
    messages = [*takewhile(lambda message: message["role"] in roles, call.messages)]
    if not messages:
        return call
    body = {
        "messages": messages,
        "tools": call.tools or None,
        "add_generation_prompt": False,
        "max_tokens": 1,
        "return_token_ids": True,
    }
    answer = httpx.post(f"{server_url}/v1/chat/completions", json=body, timeout=600)
    prompt_ids = answer.raise_for_status().json()["prompt_token_ids"]
    return replace(call, num_system=common_len(prompt_ids, call.prompt_ids))


def main() -> None:
    """Record what is asked for."""
    environment, *parts = sys.argv[1:]
    python = Path(os.path.abspath(environment)) / "bin" / "python"
    with embedded_server() as url:
        for app in APPS:
            if not parts or any(part in app for part in parts):
                record(app, python, url)


if __name__ == "__main__":
    main()
