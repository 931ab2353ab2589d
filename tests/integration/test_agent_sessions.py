"""Sessions of coding agents on a real engine: prompts that are hung up on, thousands at once."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from experiments.bench.metrics_page import samples
from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.control import session_store, session_tree
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.engine_thread import EngineThread
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.runtime.batch import Batch, BatchShapes
from kvflow_jax.runtime.interfaces import NoTransfers, WallClock
from kvflow_jax.runtime.runner import JaxStep, ModelRunner
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.server import Server, bind
from tests.serve.agent_requests import EPHEMERAL, Sent, claude_code, codex, opencode
from tests.serve.serve_requests import CHAT
from tests.support import tiny_engine
from tests.support.scripted_runner import scripted_tokenizer
from tests.support.served import running

CONTEXT, PAGE, CHUNK = 1 << 14, 16, 64
CONFIG = replace(tiny_engine.CONFIG, num_layers=1, max_model_len=CONTEXT)
PROMPT_CHARS = 8000  # a byte is a token
NUM_HANG_UPS = 10
NUM_SESSIONS, NUM_CLIENTS = 10_000, 8


class GatedRunner(ModelRunner):
    """Submits every step at once, or, while it is shut, one each time that it is told to."""

    is_shut = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._next = threading.Event()

    def submit(self, batch: Batch[np.ndarray]) -> JaxStep:
        if self.is_shut:
            self._next.wait()
            self._next.clear()
        return super().submit(batch)

    def shut(self) -> None:
        self._next.clear()
        self.is_shut = True

    def let_one_pass(self) -> None:
        self._next.set()

    def open(self) -> None:
        self.is_shut = False
        self._next.set()


@dataclass
class RealServer:
    """A server of a tiny model, with an engine of production code."""

    url: str
    engine: EngineThread
    runner: GatedRunner

    @property
    def stats(self) -> EngineStats:
        return self.engine.stats

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.url)
        return url.hostname or "", url.port or 0


@pytest.fixture(scope="module")
def real() -> Iterator[RealServer]:
    shapes = BatchShapes.plan(
        max_num_seqs=NUM_CLIENTS,
        max_prefill_tokens=CHUNK,
        tile=CHUNK,
        page_size=PAGE,
        pages_per_seq=CONTEXT // PAGE,
        deterministic=True,
    )
    pool = PoolSpec(1, 2 * CONTEXT // PAGE + 1, PAGE, CONFIG.num_kv_heads, CONFIG.head_dim)
    model = Model.build(CONFIG)
    runner = GatedRunner(model, random_params(model, seed=3), pool, shapes)
    runner.warm_up()
    tokenizer = scripted_tokenizer()
    sizes = EngineSizes(CONTEXT, 100, pool, shapes, CacheSettings(eviction="kvflow"))
    engine = Engine(
        sizes,
        runner,
        WallClock(),
        NoTransfers(),
        tokenizer=tokenizer,
        vocab_size=CONFIG.vocab_size,
        eos_token_ids=tokenizer.eos_token_ids,
        model_name="tiny",
        seed=0,
    )
    thread = EngineThread(engine)
    config = ServerConfig(port=0, load=LoadConfig("tiny"))
    build = (thread, tokenizer, "tiny")
    with running(Server(config, bind("127.0.0.1", 0), lambda config: build)) as url:
        yield RealServer(url, thread, runner)


def counter(http: httpx.Client, name: str) -> float:
    return sum(value for _, value in samples(http.get("/metrics").text, name))


def raw(sent: Sent) -> bytes:
    """Return the bytes of a request."""
    body = json.dumps({**sent.body, "stream": True}).encode()
    fields = {"host": "localhost", **sent.headers, "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {sent.path} HTTP/1.1\r\n{head}\r\n".encode() + body


def hang_up_in_prefill(real: RealServer, http: httpx.Client, sent: Sent) -> None:
    """Send a request, and leave when a part of its prompt is computed."""
    num_aborted = real.stats.num_finished.get("abort", 0)
    real.runner.shut()

    def step() -> None:
        real.runner.let_one_pass()
        http.get("/ready").raise_for_status()

    with socket.create_connection(real.address) as connection:
        connection.sendall(raw(sent))
        while not (first := real.stats.prefill.num_computed):
            step()
        while real.stats.prefill.num_computed == first:
            step()
    while real.stats.num_finished.get("abort", 0) == num_aborted:
        step()
    real.runner.open()


def with_text(sent: Sent, text: str) -> Sent:
    messages = [*sent.body["messages"][:-1], {"role": "user", "content": text}]
    return sent.with_body(messages=messages)


@pytest.mark.parametrize(
    "sent",
    [
        claude_code("session-1", "a" * PROMPT_CHARS),
        codex("thread-1", 0, "b" * PROMPT_CHARS),
        with_text(opencode(), "c" * PROMPT_CHARS),
    ],
    ids=["claude-code", "codex", "opencode"],
)
def test_hang_ups_in_prefill_leak_nothing_and_change_no_token(real: RealServer, sent: Sent) -> None:
    sent = sent.with_body(temperature=0)
    with httpx.Client(base_url=real.url, timeout=60) as http:

        def ask() -> dict:
            answer = http.post(sent.path, headers=sent.headers, json=sent.body)
            answer.raise_for_status()
            return answer.json()

        http.post("/flush_cache").raise_for_status()
        expected = ask()
        http.post("/flush_cache").raise_for_status()
        num_threads = threading.active_count()
        cached = [counter(http, "vllm:prompt_tokens_cached_total")]
        for _ in range(NUM_HANG_UPS):
            hang_up_in_prefill(real, http, sent)
            cached.append(counter(http, "vllm:prompt_tokens_cached_total"))
        answer = ask()
        assert content_of(answer) == content_of(expected)
        # Each attempt goes on where the last one was left.
        found = [after - before for before, after in pairwise(cached)]
        assert found == sorted(set(found))
        assert_nothing_is_left(real, http)
        assert threading.active_count() <= num_threads


def assert_nothing_is_left(real: RealServer, http: httpx.Client) -> None:
    stats = real.stats
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_leased) == (0, 0, 0)
    real.engine.check_integrity()
    http.post("/flush_cache").raise_for_status()
    assert real.stats.num_blocks_cached == 0


def content_of(answer: dict) -> object:
    """Return what the model wrote."""
    if "choices" in answer:
        return answer["choices"][0]["message"]["content"]
    if "output" in answer:
        return [item["content"][0]["text"] for item in answer["output"]]
    return [block["text"] for block in answer["content"]]


@pytest.mark.slow
def test_ten_thousand_sessions_at_once_are_answered_within_bounds(real: RealServer) -> None:
    def ask(first: int) -> set[int]:
        """Send the sessions of one client, on one connection; return the statuses."""
        connection = http.client.HTTPConnection(*real.address)
        statuses = set()
        for number in range(first, NUM_SESSIONS, NUM_CLIENTS):
            sent = opencode(f"ses_{number:016}").with_body(max_tokens=1)
            connection.request("POST", sent.path, json.dumps(sent.body), sent.headers)
            answer = connection.getresponse()
            answer.read()
            statuses.add(answer.status)
        connection.close()
        return statuses

    with ThreadPoolExecutor(NUM_CLIENTS) as pool, httpx.Client(base_url=real.url) as client:
        before = counter(client, "kvflow:identified_requests_total")
        assert set().union(*pool.map(ask, range(NUM_CLIENTS))) == {200}
        assert counter(client, "kvflow:identified_requests_total") == before + NUM_SESSIONS
        page = client.get("/metrics").text
        used = {
            labels["state"]: value for labels, value in samples(page, "kvflow:tenant_state_bytes")
        }
        assert 0 < used["sessions"] <= session_tree.MAX_BYTES
        assert 0 < used["histories"] <= session_store.MAX_BYTES
        assert_nothing_is_left(real, client)


@pytest.mark.parametrize(
    "requests",
    [
        [codex(generation=n) for n in (5, 3, 5, 3, 3, 0, 10**8, 1)],
        [claude_code("s", *["text"] * num) for num in (1, 3, 5)],
        [
            Sent(CHAT, {}, {**opencode().body, **fields})
            for length in (0, 121, 1 << 20)
            for fields in (
                {"prompt_cache_key": "x" * length},
                {"metadata": {"session_id": "x" * length}},
            )
        ],
    ],
    ids=["generations that go back", "marks on all messages", "long ids"],
)
def test_strange_sessions_are_answered_as_without_sessions(
    real: RealServer, requests: list[Sent]
) -> None:
    with httpx.Client(base_url=real.url, timeout=60) as http:
        for sent in requests:
            body = with_all_marked(sent.body) | {"temperature": 0}
            answers = [
                http.post(sent.path, headers=headers, json=body).raise_for_status().json()
                for headers in (sent.headers, {})
            ]
            assert content_of(answers[0]) == content_of(answers[1])
        assert_nothing_is_left(real, http)


def with_all_marked(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body with ``cache_control`` on every block of its messages."""
    marked = json.loads(json.dumps(body))
    for message in [*marked.get("messages", ()), {"content": marked.get("system")}]:
        for block in message["content"] if isinstance(message["content"], list) else ():
            block["cache_control"] = EPHEMERAL
    return marked
