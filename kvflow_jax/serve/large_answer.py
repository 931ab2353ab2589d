"""Answers with many log probabilities: written on a thread, and dumped in slices.

One answer may have 21 for each token of a context. ``json.dumps`` holds the GIL until it has
written all of them, some 60 ns for a byte.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.responses import JSONResponse

from kvflow_jax.serve.generation import ChoiceDelta

MAX_INLINE_LOGPROBS = 1 << 11  # that are written on the event loop, in 20 ms
_SLICE_LEN = 64  # items of a list

Result = TypeVar("Result")


class RunInThread(Protocol):
    """Returns ``work()``, run on a thread."""

    def __call__(self, work: Callable[[], Result], /) -> Awaitable[Result]: ...


class LargeResponse(JSONResponse):
    """A JSON response that is dumped in slices."""

    def render(self, content: Any) -> bytes:
        return dump(content)


async def write_answer(
    choices: Sequence[ChoiceDelta], write: Callable[[], Result], run_in_thread: RunInThread
) -> Result:
    """Return ``write()``, run on a thread if the choices have many log probabilities."""
    return await run_in_thread(write) if is_large(choices) else write()


def is_large(choices: Sequence[ChoiceDelta]) -> bool:
    """Return whether choices, or parts of them, have many log probabilities."""
    num = 0
    for choice in choices:
        for entries in (choice.logprobs, choice.prompt_logprobs):
            if entries:
                num += len(entries) * (1 + len(entries[-1].top))
    return num > MAX_INLINE_LOGPROBS


def dump(value: Any, *, ensure_ascii: bool = False) -> bytes:
    """Return the JSON text of an answer, in UTF-8 unless it is to be ASCII."""
    dumps = partial(json.dumps, ensure_ascii=ensure_ascii, allow_nan=False, separators=(",", ":"))
    return "".join(_slices(value, dumps)).encode()


def _slices(value: Any, dumps: Callable[[Any], str], is_cut: bool = True) -> Iterator[str]:
    """Yield the JSON text of a value.

    Args:
        is_cut: whether a long list is dumped in slices, and not item by item.
    """
    if isinstance(value, dict):
        yield "{"
        for i, (key, item) in enumerate(value.items()):
            yield f"{',' if i else ''}{dumps(key)}:"
            # Each choice may be large; what is in it is in dicts and long lists.
            yield from _slices(item, dumps, is_cut=key != "choices")
        yield "}"
    elif isinstance(value, list):
        yield "["
        if is_cut and len(value) > _SLICE_LEN:
            for start in range(0, len(value), _SLICE_LEN):
                yield f"{',' if start else ''}{dumps(value[start : start + _SLICE_LEN])[1:-1]}"
        else:
            for i, item in enumerate(value):
                yield "," if i else ""
                yield from _slices(item, dumps)
        yield "]"
    else:
        yield dumps(value)
