"""One tenant beside another that asks for all it can get.

The modest tenant has prompts of 500 new tokens, and agents whose fixed prefixes it reads again and
again. It is measured alone first, then beside the greedy one: 1,000 requests of 128 completions,
graphs of 5 MB, and runs without end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from experiments.load.background import background
from experiments.load.connections import CHAT, COMPLETIONS, Address, answer_status, stream
from experiments.load.health import watched

MODEST_KEY, GREEDY_KEY = "sk-modest", "sk-greedy"
NUM_NEW, NUM_PREFIX, NUM_AGENTS = 500, 1000, 4  # tokens, tokens, agents
GREEDY_PER_S = 50.0
RUN_CONNECTIONS = 16
HEAD_START_S = 3.0
RETRY_S = 0.01

KEY_FILE = f"""
[[keys]]
name = "modest"
key = "{MODEST_KEY}"

[[keys]]
name = "greedy"
key = "{GREEDY_KEY}"
"""


@dataclass(frozen=True)
class Sizes:
    """How much the greedy tenant asks for, and how often the modest one is measured.

    Attributes:
        vocab: token ids of prompts.
        num_new, num_prefix: tokens of a new prompt, and of an agent's fixed prefix.
        num_rounds: of the modest tenant: a new prompt, and a call of each agent.
        num_requests, n: of the greedy tenant.
        num_nodes: of each graph of the greedy tenant; 4,000 make a body of 5 MB.
    """

    vocab: range
    num_new: int = NUM_NEW
    num_prefix: int = NUM_PREFIX
    num_rounds: int = 12
    num_requests: int = 1000
    n: int = 128
    num_nodes: int = 4000


@dataclass
class Modest:
    """What the modest tenant saw: times in seconds, shares of its fixed prefixes."""

    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    num_unclear: int = 0


def key_file(folder: Path) -> Path:
    """Write the keys of both tenants; return the path for ``--api-key-file``."""
    path = folder / "keys.toml"
    path.write_text(KEY_FILE)
    return path


async def measure(url: str, sizes: Sizes) -> dict[str, Any]:
    """Measure the modest tenant alone, then beside the greedy one."""
    modest = Address.of(url, MODEST_KEY)
    await ask(modest, sizes, seed=0)  # warms up, and puts the agents' prefixes into the cache
    alone = await ask(modest, sizes, seed=1)
    statuses = Counter[str]()
    async with watched(modest) as health, greedy(Address.of(url, GREEDY_KEY), sizes, statuses):
        await asyncio.sleep(HEAD_START_S)
        beside = await ask(modest, sizes, seed=2)
    alone_s, beside_s, step_s = (
        median(times) for times in (alone.first_s, beside.first_s, beside.gaps_s)
    )
    return {
        "first_token_alone_ms": alone_s * 1e3,
        "first_token_beside_ms": beside_s * 1e3,
        "step_beside_ms": step_s * 1e3,
        "first_token_ratio": beside_s / (2 * alone_s + 2 * step_s),
        "cached_share_alone": float(np.mean(alone.cached)),
        "cached_share_ratio": float(np.mean(beside.cached) / np.mean(alone.cached)),
        "unclear": alone.num_unclear + beside.num_unclear,
        "greedy": dict(sorted(statuses.items())),
        **health.figures(),
    }


async def ask(address: Address, sizes: Sizes, seed: int) -> Modest:
    """Ask as the modest tenant does, one request after the other."""
    seen, rng, vocab = Modest(), np.random.default_rng(seed), sizes.vocab
    fixed = np.random.default_rng(1234).integers(
        vocab[0], vocab[-1], (NUM_AGENTS, sizes.num_prefix)
    )
    for _ in range(sizes.num_rounds):
        prompts = [rng.integers(vocab[0], vocab[-1], sizes.num_new)]
        prompts += [np.append(one, rng.integers(vocab[0], vocab[-1], 20)) for one in fixed]
        for agent, prompt in enumerate(prompts):
            body = {"prompt": prompt.tolist(), "max_tokens": 8, "ignore_eos": True}
            ended = await stream(address, COMPLETIONS, body)
            if ended.outcome != "whole" or not ended.token_s:
                seen.num_unclear += 1
            elif agent:
                details = ended.usage.get("prompt_tokens_details") or {}
                seen.cached.append(details.get("cached_tokens", 0) / sizes.num_prefix)
            else:
                seen.first_s.append(ended.token_s[0])
                seen.gaps_s += np.diff(ended.token_s).tolist()
    return seen


def greedy(
    address: Address, sizes: Sizes, statuses: Counter[str]
) -> AbstractAsyncContextManager[None]:
    """Return a context in which the greedy tenant asks; its statuses are counted by kind."""
    numbers, graph = count(), _graph(address, sizes.num_nodes)
    runs = [
        _repeat(address, statuses, "run", lambda: _run(address, numbers))
        for _ in range(RUN_CONNECTIONS)
    ]
    graphs = _repeat(address, statuses, "graph", lambda: graph)
    return background([_completions(address, sizes, statuses), graphs, *runs])


async def _completions(address: Address, sizes: Sizes, statuses: Counter[str]) -> None:
    """Open the requests of many completions at a fixed rate."""
    rng, vocab = np.random.default_rng(3), sizes.vocab
    async with asyncio.TaskGroup() as group:
        for _ in range(sizes.num_requests):
            prompt = rng.integers(vocab[0], vocab[-1], sizes.num_new).tolist()
            body = {"prompt": prompt, "n": sizes.n, "max_tokens": 128, "ignore_eos": True}
            group.create_task(_one(address, statuses, body))
            await asyncio.sleep(1 / GREEDY_PER_S)


async def _one(address: Address, statuses: Counter[str], body: dict[str, Any]) -> None:
    statuses[f"n {(await stream(address, COMPLETIONS, body)).outcome}"] += 1


async def _repeat(
    address: Address, statuses: Counter[str], kind: str, request: Callable[[], bytes]
) -> None:
    """Send requests on a connection that stays open, one after the other."""
    while True:
        with suppress(OSError, EOFError):
            async with address.connection() as (reader, writer):
                while True:
                    status = await answer_status(reader, writer, request())
                    statuses[f"{kind} {status}"] += 1
        await asyncio.sleep(RETRY_S)


def _graph(address: Address, num_nodes: int) -> bytes:
    """Return the registration of a graph, of names of 128 characters."""
    nodes = [f"{i:0128}" for i in range(num_nodes)]
    edges = [
        {"source": node, "target": target}
        for i, node in enumerate(nodes)
        for target in nodes[i + 1 : i + 5]
    ]
    return address.request("/v1/workflows/greedy", {"nodes": nodes, "edges": edges}, method="PUT")


def _run(address: Address, numbers: Iterator[int]) -> bytes:
    """Return a call of a new run."""
    nodes = [f"agent{i}" for i in range(16)]
    edges = [{"source": a, "target": b} for a in nodes for b in nodes if a < b]
    hints = {
        "workflow_id": f"run{next(numbers)}",
        "agent_id": nodes[0],
        "step_graph": {"nodes": nodes, "edges": edges},
    }
    messages = [{"role": "user", "content": "Hi"}]
    return address.request(CHAT, {"messages": messages, "max_tokens": 1, "agent_hints": hints})
