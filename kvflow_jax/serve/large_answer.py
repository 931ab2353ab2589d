"""Answers with many log probabilities: written on a thread, and dumped in slices.

One answer may have 21 for each token of a context.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from starlette.responses import JSONResponse, Response

from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.large_json import dump

MAX_INLINE_LOGPROBS = 1 << 11  # that are written on the event loop, in 20 ms

Result = TypeVar("Result")


class RunInThread(Protocol):
    """Returns ``work()``, run on a thread."""

    def __call__(self, work: Callable[[], Result], /) -> Awaitable[Result]: ...


async def json_response(
    choices: Sequence[ChoiceDelta],
    write: Callable[[], dict[str, Any]],
    headers: Mapping[str, str],
    run_in_thread: RunInThread,
) -> Response:
    """Return the JSON response whose body is ``write()``, as ``write_answer`` calls it."""
    response = _LargeResponse if is_large(choices) else JSONResponse
    return await write_answer(choices, lambda: response(write(), headers=headers), run_in_thread)


async def write_answer(
    choices: Sequence[ChoiceDelta], write: Callable[[], Result], run_in_thread: RunInThread
) -> Result:
    """Return ``write()``, run on a thread if the choices have many log probabilities."""
    return await run_in_thread(write) if is_large(choices) else write()


def is_large(choices: Sequence[ChoiceDelta]) -> bool:
    """Return whether choices, or deltas of them, have many log probabilities."""
    num = 0
    for choice in choices:
        for entries in (choice.logprobs, choice.prompt_logprobs):
            if entries:
                num += len(entries) * (1 + len(entries[-1].top))
    return num > MAX_INLINE_LOGPROBS


class _LargeResponse(JSONResponse):
    """A JSON response that is dumped in slices."""

    def render(self, content: Any) -> bytes:
        return dump(content)
