"""A modest tenant beside a greedy one."""

import asyncio
import json
import tomllib
from collections import Counter

from experiments.load import tenants
from tests.experiments.load.fake_server import FakeServer

SIZES = tenants.Sizes(
    range(256), num_new=5, num_prefix=6, num_rounds=2, num_requests=2, n=3, num_nodes=3
)


def test_the_modest_tenant_is_measured_alone_and_beside(monkeypatch):
    monkeypatch.setattr(tenants, "HEAD_START_S", 0.1)
    server = FakeServer()

    async def run():
        async with server.listening() as address:
            return await tenants.measure(f"http://127.0.0.1:{address.port}", SIZES)

    figures = asyncio.run(run())
    assert figures["cached_share_alone"] == 0.5  # 3 tokens of 6
    assert figures["cached_share_ratio"] == 1
    assert figures["unclear"] == 0
    assert figures["first_token_ratio"] > 0
    assert figures["greedy"]["n whole"] == 2
    assert {"graph 200", "run 200"} <= figures["greedy"].keys()

    sent = [one for one in server.requests if one[2].get("authorization") == "bearer sk-greedy"]
    graphs = {body for method, _, _, body in sent if method == "PUT"}
    (graph,) = map(json.loads, graphs)
    assert len(graph["nodes"]) == 3
    assert len(graph["edges"]) == 3
    runs = [json.loads(body)["agent_hints"] for _, _, _, body in sent if b"agent_hints" in body]
    assert len({run["workflow_id"] for run in runs}) == len(runs)


def test_prompts_are_new_and_prefixes_are_not():
    server = FakeServer()

    async def run():
        async with server.listening() as address:
            return [await tenants.ask(address, SIZES, seed) for seed in (1, 2)]

    asyncio.run(run())
    prompts = [tuple(json.loads(body)["prompt"]) for _, _, _, body in server.requests]
    assert len(set(prompts)) == len(prompts)
    agents = [prompt[:6] for prompt in prompts if len(prompt) > 5]
    assert len(set(agents)) == tenants.NUM_AGENTS


def test_a_refused_prompt_of_the_modest_tenant_is_counted():
    async def run():
        async with FakeServer(429, b"Retry-After: 1\r\n").listening() as address:
            return await tenants.ask(address, SIZES, 0)

    seen = asyncio.run(run())
    assert (seen.num_unclear, seen.first_s, seen.cached) == (10, [], [])


def test_the_greedy_tenant_connects_again():
    async def run():
        server, statuses = FakeServer(200), Counter()
        async with server.listening() as address, tenants.greedy(address, SIZES, statuses):
            while statuses["run 200"] < 40 or statuses["n whole"] < 2:
                await asyncio.sleep(0)
        return statuses

    assert asyncio.run(run())["graph 200"]


def test_the_key_file_has_both_keys(tmp_path):
    keys = tomllib.loads(tenants.key_file(tmp_path).read_text())["keys"]
    assert [key["name"] for key in keys] == ["modest", "greedy"]
