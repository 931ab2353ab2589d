from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvflow_jax.requests.outputs import Output
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve.generation import Generation, Mailbox
from tests.serve.serve_fakes import FakeEngine


class CountingLoop:
    """Stands for a busy loop: wake-ups wait until the test lets them run."""

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


def test_many_outputs_one_wake_up() -> None:
    loop, one, two = CountingLoop(), Reader(), Reader()
    mailbox = Mailbox(loop)
    for text in "abc":
        mailbox.post(one, 0, Output(0, text, ()))
        mailbox.post(two, 0, Output(1, text.upper(), ()))
    assert len(loop.wake_ups) == 1
    loop.wake_ups.pop()()
    assert (one.texts, two.texts) == (["a", "b", "c"], ["A", "B", "C"])
    mailbox.post(one, 0, Output(0, "d", ()))
    assert len(loop.wake_ups) == 1


def test_a_stopped_server_does_not_hurt_the_engine() -> None:
    loop = CountingLoop()
    loop.closed = True
    Mailbox(loop).post(Reader(), 0, Output(0, "a", ()))


def test_outputs_of_one_wake_up_become_one_piece() -> None:
    engine = FakeEngine()
    engine.reply = None

    async def scenario() -> list[tuple[str, bool]]:
        generation = Generation(
            engine, Mailbox(asyncio.get_running_loop()), lambda output: None, lambda _: None
        )
        generation.submit([1], SamplingParams(), salt="", priority=0, fairness_key="")
        for text in "abc":
            engine.emit(engine.last, text)
        engine.finish(engine.last, text="d")
        engine.settle()  # the loop is held here: everything waits in the mailbox
        pieces = []
        async for batch in generation.deltas():
            pieces += [(delta.text, delta.finish_reason is not None) for delta in batch]
        generation.close()
        return pieces

    try:
        assert asyncio.run(scenario()) == [("abcd", True)]
    finally:
        engine.close()
