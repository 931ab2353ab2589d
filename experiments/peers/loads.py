"""Agentic loads over HTTP, the same for every server with OpenAI's /v1/completions."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, Protocol

import numpy as np

TIMEOUT_S = 600.0  # of a request
MODEL = "model"  # the name under which every server serves it


@dataclass(frozen=True)
class Client:
    """A client of one server, which notes the time to first token of each request.

    Attributes:
        url: of the server.
        vocab: range of the token ids of prompts.
    """

    url: str
    vocab: tuple[int, int]
    ttfts_s: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(
        self, prompt: Sequence[int], num_tokens: int, hints: Mapping[str, Any] | None = None
    ) -> None:
        """Generate so many tokens, streamed; return when the last one has come."""
        body: dict[str, Any] = {
            "model": MODEL,
            "prompt": list(prompt),
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        if hints is not None:
            body["agent_hints"] = hints
        request = urllib.request.Request(
            f"{self.url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        start, first_s = time.perf_counter(), None
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            for line in answer:
                if first_s is None and line.startswith(b"data: {"):
                    first_s = time.perf_counter() - start
        assert first_s is not None, "the server answered without a token"
        with self._lock:
            self.ttfts_s.append(first_s)

    def tokens(self, rng: np.random.Generator, num_tokens: int) -> list[int]:
        """Return random tokens."""
        return [int(token) for token in rng.integers(*self.vocab, num_tokens)]


class Load(Protocol):
    """A load, and the KV memory that its servers get."""

    @property
    def peers_load(self) -> str:
        """Name of the load that the peers' servers get in its place: the same without hints."""
        ...

    @property
    def num_seqs(self) -> int:
        """Number of prompts that fit the KV memory side by side, in 16 bits a number."""
        ...

    def kv_bytes(self, numbers_per_token: int) -> int:
        """Return the bytes of KV of a server, for a model with so many numbers a token."""
        ...

    def run(self, client: Client) -> dict[str, Any]:
        """Put the load on a server; return its figures, ``makespan_s`` among them."""
        ...


@dataclass(frozen=True)
class AgentCycle:
    """Agents that run one after the other, round after round, each with a prefix of its own.

    The first round computes every prefix on any server; the makespan is that of the others.

    Attributes:
        num_fitting: agents whose prompts and answers fit the KV memory, in 16 bits a number.
    """

    num_agents: int = 10
    prefix_len: int = 4096
    suffix_len: int = 32
    output_len: int = 16
    num_rounds: int = 4
    num_fitting: int = 4
    with_hints: bool = False
    peers_load: str = "agents_cycle"

    @property
    def num_seqs(self) -> int:
        return self.num_fitting

    def kv_bytes(self, numbers_per_token: int) -> int:
        # Engines allocate in blocks of up to 128 tokens.
        call_len = -(-(self.prefix_len + self.suffix_len + self.output_len) // 128) * 128
        return self.num_fitting * call_len * numbers_per_token * 2

    def run(self, client: Client) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        prefixes = [client.tokens(rng, self.prefix_len) for _ in range(self.num_agents)]
        rounds_s, ttfts_s = [], []
        for _ in range(self.num_rounds):
            client.ttfts_s.clear()
            start = time.perf_counter()
            for agent, prefix in enumerate(prefixes):
                prompt = prefix + client.tokens(rng, self.suffix_len)
                client.complete(prompt, self.output_len, self._hints(agent))
            rounds_s.append(time.perf_counter() - start)
            ttfts_s.append(mean(client.ttfts_s))
        return {
            "makespan_s": sum(rounds_s[1:]),
            "rounds_s": rounds_s,
            "ttft_mean_s": mean(ttfts_s[1:]),
        }

    def _hints(self, agent: int) -> dict[str, Any] | None:
        if not self.with_hints:
            return None
        names = [f"agent-{i}" for i in range(self.num_agents)]
        edges = zip(names, [*names[1:], names[0]], strict=True)
        return {
            "workflow_id": "cycle",
            "agent_id": names[agent],
            "step_graph": {
                "nodes": names,
                "edges": [{"source": source, "target": target} for source, target in edges],
                "entries": names[:1],
                "joins": [{"target": names[0], "mode": "any"}],
            },
            "fixed_prefix": {"unit": "token", "end": self.prefix_len},
        }


@dataclass(frozen=True)
class CodingSessions:
    """Sessions side by side, each of which adds to its history, calls, and runs a tool.

    All histories fit the KV memory, in 32 bits a number. They share the system prompt.

    Attributes:
        turn_len: tokens that a turn adds besides its answer, such as a tool's result.
        pause_s: scale of the tools' times, which have a Pareto distribution.
    """

    num_sessions: int = 8
    num_turns: int = 6
    system_len: int = 512
    turn_len: int = 192
    output_len: int = 24
    pause_s: float = 0.4
    peers_load: str = "coding_sessions"

    @property
    def num_seqs(self) -> int:
        return self.num_sessions

    def kv_bytes(self, numbers_per_token: int) -> int:
        history_len = self.system_len + self.num_turns * (self.turn_len + self.output_len)
        # A server may keep the system prompt once a session, in blocks of up to 128 tokens.
        return self.num_sessions * -(-history_len // 128) * 128 * numbers_per_token * 4

    def run(self, client: Client) -> dict[str, Any]:
        system = client.tokens(np.random.default_rng(0), self.system_len)
        start = time.perf_counter()
        with ThreadPoolExecutor(self.num_sessions) as threads:
            ends = threads.map(lambda i: self._session(client, i, system), range(self.num_sessions))
            completions_s = [end - start for end in ends]
        return {
            "makespan_s": max(completions_s),
            "completion_mean_s": mean(completions_s),
            "ttft_mean_s": mean(client.ttfts_s),
            "ttft_max_s": max(client.ttfts_s),
        }

    def _session(self, client: Client, number: int, system: list[int]) -> float:
        """Run one session; return when it ended."""
        rng = np.random.default_rng([1, number])
        history = system
        for turn in range(self.num_turns):
            if turn:
                # The tool that the last answer called.
                time.sleep(self.pause_s * (0.2 + min(float(rng.pareto(1.5)), 10.0)))
            history = history + client.tokens(rng, self.turn_len)
            client.complete(history, self.output_len)
            # What the model said is random, too: servers may differ in their answers.
            history = history + client.tokens(rng, self.output_len)
        return time.perf_counter()


LOADS: dict[str, Load] = {
    "agents_cycle_hints": AgentCycle(with_hints=True),
    "agents_cycle": AgentCycle(),
    "coding_sessions": CodingSessions(),
}
QUICK_LOADS: dict[str, Load] = {
    "agents_cycle_hints": replace(
        AgentCycle(with_hints=True), num_agents=4, prefix_len=96, num_rounds=2, num_fitting=2
    ),
    "coding_sessions": CodingSessions(
        num_sessions=2, num_turns=2, system_len=32, turn_len=16, output_len=4, pause_s=0.01
    ),
}
