"""A workflow through the OpenAI client, the server and the engine, in each cache mode."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from kvflow_jax.serve.command_line import parse_config
from kvflow_jax.serve.launch import build_engine
from kvflow_jax.serve.server import Server, bind
from tests.models import tiny
from tests.support.served import running

PAGE = 16
# The planner fans out to two agents that run in parallel. The reviewer waits for both, and may call
# the planner again.
GRAPH = {
    "nodes": ["planner", "writer", "tester", "reviewer"],
    "edges": [
        {"source": "planner", "target": "writer"},
        {"source": "planner", "target": "tester"},
        {"source": "writer", "target": "reviewer"},
        {"source": "tester", "target": "reviewer"},
        {"source": "reviewer", "target": "planner", "probability": 0.9},
    ],
    "joins": [{"target": "reviewer", "mode": "all"}, {"target": "planner", "mode": "any"}],
    "entries": ["planner"],
}
ROUNDS = 3


def system_of(agent: str) -> str:
    return f"{agent}: you do what {agent}s do, and you do it with care and in few words."


class Team:
    """Drives the workflow; notes the text of each call and how many of its tokens were cached."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client
        self.texts: list[str] = []
        self.answers: list[tuple[str, int, dict]] = []  # agent, cached tokens, kvflow

    def call(self, agent: str, task: str, hints: dict):
        answer = self._client.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": system_of(agent)},
                {"role": "user", "content": task},
            ],
            temperature=0,
            max_tokens=6,
            extra_body={"agent_hints": {"agent_id": agent, **hints}, "ignore_eos": True},
        )
        return agent, answer

    def note(self, agent: str, answer) -> None:
        self.texts.append(answer.choices[0].message.content)
        cached = answer.usage.prompt_tokens_details.cached_tokens
        self.answers.append((agent, cached, answer.kvflow))

    def go_round(self, turn: int, hints: dict) -> None:
        self.note(*self.call("planner", f"plan {turn}", hints))
        with ThreadPoolExecutor(2) as pool:
            work = [pool.submit(self.call, a, f"do {turn}", hints) for a in ("writer", "tester")]
            for one in work:
                self.note(*one.result())
        self.note(*self.call("reviewer", f"judge {turn}", hints))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A model's folder, and the cache of compiled programs that all servers share."""
    root = tmp_path_factory.mktemp("serving")
    return tiny.write_folder(root / "model"), root / "cache"


@pytest.fixture(scope="module")
def texts_of() -> dict[str, list[str]]:
    return {}


@pytest.mark.parametrize("mode", ["gpu-only", "hicache", "kvflow"])
def test_a_branching_joining_cyclic_workflow(mode, model_folder, texts_of):
    folder, cache_dir = model_folder
    # Of the four agents' prompts and answers the pool holds about two. Sizes are those of
    # test_llm.py, so that what compiles there need not compile here.
    flags = f"--model {folder} --served-model-name tiny --port 0 --dtype float32 "
    flags += f"--cache-dir {cache_dir} "
    flags += f"--cache {mode} --num-pages 18 --max-num-seqs 2 --max-num-batched-tokens 64"
    if mode != "gpu-only":
        flags += " --host-cache-gib 0.01"
    config = parse_config(flags.split())
    server = Server(config, bind("127.0.0.1", 0), build_engine)
    with (
        running(server) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        http.put("/v1/workflows/team", json=GRAPH).raise_for_status()
        team = Team(client)
        for turn in range(ROUNDS):
            team.go_round(turn, {"workflow_id": "by name", "graph_id": "team"})
        for turn in range(ROUNDS):
            team.go_round(turn, {"workflow_id": "inline", "step_graph": GRAPH})
        status = "applied" if mode == "kvflow" else "ignored"  # LRU reads no hints
        assert {kvflow["hint_status"] for _, _, kvflow in team.answers} == {status}
        found = [cached for _, cached, _ in team.answers]
        details = [kvflow["cached_tokens_details"] for _, _, kvflow in team.answers]
        assert [one["device"] + one["host"] for one in details] == found
        assert found[:4] == [0] * 4
        if mode != "gpu-only":  # gpu-only keeps little until the agent calls again
            assert min(found[4:]) >= 4 * PAGE  # of prompts of six pages
        if mode == "kvflow":  # most was prefetched
            assert sum(one["host"] for one in details) < sum(found) / 2
            stats = server.service.stats
            assert stats.num_useful_blocks + stats.num_late_blocks > 0
        _, unknown = team.call("writer", "x", {"workflow_id": "else", "graph_id": "nobody's"})
        assert unknown.kvflow["hint_status"] == "unknown_graph"
        assert http.post("/v1/workflows/inline/advance", json={"finished": True}).json() == {
            "unknown_agents": []
        }
        assert http.post("/v1/workflows/inline/advance", json={}).status_code == 404
    texts_of[mode] = team.texts
    assert team.texts == next(iter(texts_of.values()))  # the same text in each cache mode
