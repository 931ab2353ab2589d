"""Memory soak: a server at full load, whose memory must not grow and whose texts must not change.

    python -m experiments.memory_soak --json FILE     # 20 minutes
    python -m experiments.memory_soak --quick         # tiny random model: a check of the command

What the server keeps within bounds is filled first. Then come agents with graphs and hints,
conversations, tool calls and schemas, streams, clients that leave, registered graphs and wrong
requests, from as many clients as the batch has rows. Resident memory is read every few seconds;
``mb_per_minute`` is the slope of a line through what follows ``--settle-minutes``, and
``kept_mb_per_minute`` that of each store that the server bounds in bytes. Greedy texts are compared
with the first answer to the same prompt: the server runs deterministically. Exits with 1 if a text
differs.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import numpy as np

from experiments.bench.metrics_page import samples
from experiments.bench.server_process import server_process
from experiments.make_folder import temporary_folder
from experiments.measure import arguments, positive_float, positive_int, report

# Tiers that ``fill_stores`` fills: a tier that fills is no growth.
FLAGS = ("--deterministic", "--pool-gib=0.125", "--host-cache-gib=0.125", "--max-model-len=2048")
QUICK = ("--deterministic", "--pool-gib=0.02", "--max-num-seqs=4", "--max-model-len=1024")
SAMPLE_S = 2.0  # between two looks at memory
NUM_PROMPTS = 64  # different prompts whose texts are compared
NUM_GRAMMARS = 900  # compiled before the first look at memory: more than the server caches
CHAT = "/v1/chat/completions"


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=positive_float, help="default: 20, quick 0.1")
    parser.add_argument("--settle-minutes", type=positive_float, help="default: a quarter")
    parser.add_argument("--clients", type=positive_int, help="default: 32, quick 4")
    parser.add_argument("--model", help="default: smollm2-135m, quick a tiny random one")
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, few seconds"
    )
    options = parser.parse_args()
    minutes = options.minutes or (0.1 if options.quick else 20.0)
    settle_s = 60 * (options.settle_minutes or minutes / 4)
    is_tiny = options.quick and options.model is None
    with temporary_folder() if is_tiny else nullcontext() as folder:
        flags = [*(QUICK if options.quick else FLAGS)]
        if model := folder or options.model:
            flags += ["--model", str(model)]
        num_clients, num_grammars = (4, 1) if options.quick else (32, NUM_GRAMMARS)
        soak = Soak(options.clients or num_clients, num_grammars)
        figures = asyncio.run(soak.run(flags, 60 * minutes, settle_s))
    report(figures, {"wrong_texts": "0", "mb_per_minute": "<= 0.1"}, options.json)
    if figures["wrong_texts"]:
        print("memory_soak: texts differ, see wrong_texts", file=sys.stderr)
        return 1
    return 0


@dataclass
class Soak:
    """A server under mixed load, and what was seen of it.

    Attributes:
        num_grammars: see ``fill_stores``.
        statuses: number of answers by kind of request and HTTP status; 0: the client left.
        texts: the first answer to each prompt that is compared.
        memory: (seconds, resident bytes) of the server.
        kept: store -> (seconds, bytes) as the server counts them: host tier, state of tenants.
    """

    num_clients: int
    num_grammars: int = 0
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    texts: dict[int, str] = field(default_factory=dict)
    num_wrong: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)
    kept: defaultdict[str, list[tuple[float, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    async def run(self, flags: list[str], seconds: float, settle_s: float) -> dict[str, Any]:
        """Load a server with these flags; return the figures."""
        async with (
            server_process(flags) as process,
            httpx.AsyncClient(
                base_url=process.url, timeout=300, limits=httpx.Limits(max_connections=None)
            ) as http,
        ):
            await fill_stores(http, self.num_grammars, self.num_clients)
            stop = asyncio.Event()
            clients = [
                asyncio.create_task(self._client(http, seed, stop))
                for seed in range(self.num_clients)
            ]
            start_s = time.monotonic()
            while (now := time.monotonic() - start_s) < seconds:
                self.memory.append((now, process.resident_bytes()))
                page = (await http.get("/metrics")).text
                for labels, num in samples(page, "kvflow:tenant_state_bytes"):
                    self.kept[labels["state"]].append((now, int(num)))
                await asyncio.sleep(min(SAMPLE_S, seconds / 8))
            stop.set()
            await asyncio.gather(*clients)
        return {
            "minutes": seconds / 60,
            "requests": sum(self.statuses.values()),
            "answers": {
                f"{kind} {status}": n for (kind, status), n in sorted(self.statuses.items())
            },
            "wrong_texts": self.num_wrong,
            "resident_mb": [
                round(b / 1e6, 1) for s, b in self.memory[:: max(1, len(self.memory) // 20)]
            ],
            "mb_per_minute": slope_mb_per_minute(self.memory, settle_s),
            "kept_mb": {store: seen[-1][1] / 1e6 for store, seen in self.kept.items()},
            "kept_mb_per_minute": {
                store: slope_mb_per_minute(seen, settle_s) for store, seen in self.kept.items()
            },
        }

    async def _client(self, http: httpx.AsyncClient, seed: int, stop: asyncio.Event) -> None:
        rng, number = random.Random(seed), 0
        kinds = (_compared, _workflow, _conversation, _tools, _leaves, _registers, _wrong)
        while not stop.is_set():
            number += 1
            kind = rng.choice(kinds)
            name = kind.__name__.strip("_")
            try:
                async for answer in kind(self, http, rng, f"{seed}-{number}"):
                    self.statuses[name, answer.status_code] += 1
            except httpx.ReadTimeout:
                self.statuses[name, 0] += 1
            await asyncio.sleep(0)  # a transport that never waits must not keep the loop

    def compare(self, prompt: int, answer: httpx.Response) -> None:
        """Compare the text of an answer with the first to the same prompt."""
        if answer.status_code == 200:
            text = answer.json()["choices"][0]["text"]
            self.num_wrong += self.texts.setdefault(prompt, text) != text


async def fill_stores(http: httpx.AsyncClient, num_grammars: int, num_clients: int) -> None:
    """Fill what the server keeps within a bound of bytes, so that it does not grow for that.

    As many grammars as those of the load that the server caches, and prompts as long as both tiers.
    """
    numbers = iter(range(num_grammars))

    async def fill() -> None:
        for i in numbers:
            await http.post(CHAT, json={"max_tokens": 1, **_schema(f"key-fill-{i}")})
            if i % 32 == 0:
                prompt = f"{i} {i + 1} " * 150
                await http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})

    await asyncio.gather(*(fill() for _ in range(num_clients)))


Answers = AsyncIterator[httpx.Response]


async def _compared(soak: Soak, http: httpx.AsyncClient, rng: random.Random, name: str) -> Answers:
    """A greedy completion of one of a few prompts."""
    number = rng.randrange(NUM_PROMPTS)
    prompt = f"Number {number}. " + "The quick brown fox jumps over the lazy dog. " * (number % 16)
    answer = await http.post(
        "/v1/completions", json={"prompt": prompt, "max_tokens": 24, "temperature": 0}
    )
    soak.compare(number, answer)
    yield answer


async def _workflow(soak: Soak, http: httpx.AsyncClient, rng: random.Random, name: str) -> Answers:
    """A run of a workflow, whose graph comes with each call."""
    agents = [f"agent{i}" for i in range(rng.randint(2, 6))]
    edges = [{"source": a, "target": b} for a, b in pairwise(agents)]
    for agent in agents:
        hints = {
            "workflow_id": name,
            "agent_id": agent,
            "step_graph": {"nodes": agents, "edges": edges},
            "session_final": agent == agents[-1],
        }
        messages = [_system(f"You are {agent}."), _user(f"Step of run {name}.")]
        body = {"messages": messages, "max_tokens": rng.randint(1, 24), "agent_hints": hints}
        yield await http.post(CHAT, json=body)


async def _conversation(
    soak: Soak, http: httpx.AsyncClient, rng: random.Random, name: str
) -> Answers:
    """A conversation of several turns."""
    messages = [_system("You are kind.")]
    for turn in range(rng.randint(2, 4)):
        messages.append(_user(f"Turn {turn} of {name}."))
        answer = await http.post(
            CHAT, json={"messages": messages, "max_tokens": 16, "session_id": name}
        )
        yield answer
        if answer.status_code != 200:
            return
        messages.append(answer.json()["choices"][0]["message"])


async def _tools(soak: Soak, http: httpx.AsyncClient, rng: random.Random, name: str) -> Answers:
    """A structured output, of a schema that others have or that no other has."""
    key = f"key{rng.randrange(20)}" if rng.random() < 0.5 else f"key-{name}"
    yield await http.post(CHAT, json={"max_tokens": 24, **_schema(key)})


async def _leaves(soak: Soak, http: httpx.AsyncClient, rng: random.Random, name: str) -> Answers:
    """A stream whose client leaves after a few chunks, or reads it all."""
    body = {"messages": [_user(f"Count. {name}")], "max_tokens": 48, "stream": True, "n": 2}
    num_read = rng.choice([0, 1, 5, 1000])
    async with http.stream("POST", CHAT, json=body) as answer:
        async for _ in answer.aiter_lines():
            num_read -= 1
            if num_read < 0:
                break
    yield answer


async def _registers(soak: Soak, http: httpx.AsyncClient, rng: random.Random, name: str) -> Answers:
    """A registered graph that is used, reported on, and left behind or removed."""
    graph = {"nodes": ["a", "b"], "edges": [{"source": "a", "target": "b"}]}
    yield await http.put(f"/v1/workflows/graph-{name}", json=graph)
    hints = {"workflow_id": f"run-{name}", "agent_id": "a", "graph_id": f"graph-{name}"}
    yield await http.post(
        CHAT, json={"messages": [_user("Hi")], "max_tokens": 2, "agent_hints": hints}
    )
    yield await http.post(f"/v1/workflows/run-{name}/advance", json={"completed": ["a"]})
    if rng.random() < 0.5:
        yield await http.delete(f"/v1/workflows/graph-{name}")


async def _wrong(soak: Soak, http: httpx.AsyncClient, rng: random.Random, name: str) -> Answers:
    """Requests that are refused."""
    yield await http.post(CHAT, json={"messages": "no list"})
    yield await http.post("/v1/completions", json={"prompt": [1, 2], "max_tokens": -5})
    yield await http.get(f"/v1/{name}")
    yield await http.get("/metrics")


def _schema(key: str) -> dict[str, Any]:
    """Return fields of a chat whose answer is an object with this key."""
    schema = {"type": "object", "properties": {key: {"type": "integer"}}, "required": [key]}
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return {"messages": [_user("JSON")], "response_format": response_format}


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def slope_mb_per_minute(memory: Sequence[tuple[float, int]], settle_s: float) -> float:
    """Return the slope of a line through the samples (seconds, bytes) after ``settle_s``.

    With fewer than two samples it is NaN.
    """
    samples = [one for one in memory if one[0] >= settle_s]
    if len(samples) < 2:
        return math.nan
    seconds, num_bytes = np.array(samples).T
    return float(np.polyfit(seconds / 60, num_bytes / 1e6, 1)[0])


if __name__ == "__main__":
    raise SystemExit(main())
