from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from kvflow_jax.requests.outputs import FinishReason, Output, TokenLogprobs
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.serve.generation import ChoiceDelta, Generation, Mailbox
from tests.serve.serve_fakes import TIMEOUT_S, FakeEngine, LiveServer
from tests.serve.serve_requests import HELLO, raw_completion_request


class CountingLoop:
    """A busy event loop: the test runs its wake-ups."""

    def __init__(self) -> None:
        self.wake_ups: list[Callable[[], None]] = []
        self.closed = False

    def call_soon_threadsafe(self, action: Callable[[], None]) -> None:
        if self.closed:
            raise RuntimeError("closed")
        self.wake_ups.append(action)

    def is_closed(self) -> bool:
        return self.closed


class Reader:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def receive(self, index: int, output: Output) -> None:
        self.texts.append(output.text)


def test_one_wake_up_delivers_many_outputs() -> None:
    loop, first, second = CountingLoop(), Reader(), Reader()
    mailbox = Mailbox(loop)
    for text in "abc":
        mailbox.post(first, 0, Output(0, text, ()))
        mailbox.post(second, 0, Output(1, text.upper(), ()))
    assert len(loop.wake_ups) == 1
    loop.wake_ups.pop()()
    assert (first.texts, second.texts) == (["a", "b", "c"], ["A", "B", "C"])
    mailbox.post(first, 0, Output(0, "d", ()))
    assert len(loop.wake_ups) == 1


def test_each_token_of_a_merged_delta_has_the_end_of_its_text() -> None:
    delta = ChoiceDelta(0)
    logprobs = tuple(TokenLogprobs(token, -1.0) for token in range(3))
    delta.add(Output(0, "ab", (0,), logprobs=logprobs[:1]))
    delta.add(Output(0, "cdef", (0, 1, 2), logprobs=logprobs, text_ends=(1, 1, 4)))
    # The token that ends a text is not part of it.
    stop = Output(0, "g", (0, 1), FinishReason.STOP, logprobs=logprobs[:2], text_ends=(1, 1))
    delta.add(stop)
    assert delta.text_ends == [2, 3, 3, 6, 7]
    assert len(delta.logprobs) == 5


def test_posting_to_a_closed_loop_does_not_raise() -> None:
    loop = CountingLoop()
    loop.closed = True
    Mailbox(loop).post(Reader(), 0, Output(0, "a", ()))


def test_outputs_of_one_wake_up_are_merged() -> None:
    engine = FakeEngine()
    engine.reply = None

    async def scenario() -> list[tuple[str, bool]]:
        generation = Generation(
            engine, Mailbox(asyncio.get_running_loop()), lambda output: None, lambda _: None
        )
        generation.submit(RequestSpec([1]))
        for text in "abc":
            engine.emit(engine.last, text)
        engine.finish(engine.last, text="d")
        # This blocks the loop, so that all outputs are pending in the mailbox.
        engine.settle()
        received = []
        async for batch in generation.deltas():
            received += [(delta.text, delta.finish_reason is not None) for delta in batch]
        generation.close()
        return received

    try:
        assert asyncio.run(scenario()) == [("abcd", True)]
    finally:
        engine.close()


def test_concurrent_requests_get_their_own_answers(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply = lambda request: list(request.prompt.removeprefix("<user>"))

    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"number {number}"}]
        if number % 2:
            answer = client.chat.completions.create(model="tiny", messages=messages)
            return answer.choices[0].message.content
        with client.chat.completions.create(model="tiny", messages=messages, stream=True) as stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    assert answers == [f"number {number}" for number in range(40)]


def test_a_disconnect_during_a_stream_aborts_the_request(
    http: httpx.Client, engine: FakeEngine
) -> None:
    engine.reply, engine.first_texts = None, ["a"]
    body = {"messages": HELLO, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
    request = engine.last
    engine.wait_for(lambda: engine.aborted == [request.request_id])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_a_disconnect_before_the_first_token_aborts_the_requests(
    live: LiveServer, engine: FakeEngine, stream: bool, prompt: str | list[str]
) -> None:
    engine.reply = None
    with socket.create_connection(live.address, TIMEOUT_S) as connection:
        connection.sendall(raw_completion_request(prompt, stream))
        requests = engine.wait_for_requests(len(prompt))
    engine.wait_for(lambda: sorted(engine.aborted) == [r.request_id for r in requests])
    engine.settle()
    assert engine.stats.num_finished == {FinishReason.ABORT.value: len(requests)}


def test_a_finished_request_is_not_aborted(http: httpx.Client, engine: FakeEngine) -> None:
    for stream in (False, True):
        body = {"messages": HELLO, "stream": stream}
        http.post("/v1/chat/completions", json=body).raise_for_status()
    assert engine.aborted == []
