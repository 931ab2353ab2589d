"""What processes say to each other: plain data, never code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize


@dataclass(frozen=True)
class Hello:
    """A follower's first message.

    Attributes:
        settings: by flag, what decides programs and sizes; those of all processes must agree.
    """

    process_id: int
    num_processes: int
    host: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Refused:
    """To one that may not join."""

    why: str


@dataclass(frozen=True)
class StartJax:
    """All are there: JAX's coordinator will be at this port of process 0's host."""

    jax_port: int


@dataclass(frozen=True)
class Gather:
    """What a process knows, when all are asked: JSON-like."""

    value: Any


@dataclass(frozen=True)
class Gathered:
    """What all have said, by process."""

    values: list[Any]


@dataclass(frozen=True)
class Submit:
    """Run a step. See ``Batch``."""

    shape: int  # which of the runner's
    tokens: np.ndarray
    ints: np.ndarray
    floats: np.ndarray


@dataclass(frozen=True)
class SetSequenceState:
    """See ``ModelRunner.remember``; fields of a ``SequenceState``."""

    sequence_state: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """See ``Runner.score``."""

    start: int
    targets: np.ndarray


@dataclass(frozen=True)
class Read:
    """Read blocks out of the pool and keep them under a number."""

    number: int
    pages: np.ndarray


@dataclass(frozen=True)
class Write:
    """Write what is kept under a number into the pool."""

    number: int
    indices: np.ndarray
    pages: np.ndarray


@dataclass(frozen=True)
class Copy:
    """Copy what is kept under ``source`` to the host or the device, keep the copy as ``number``."""

    number: int
    source: int
    to_host: bool


@dataclass(frozen=True)
class Copied:
    """A follower's answer to ``Copy``, once its part is there."""

    number: int
    error: str  # "" where there is none


@dataclass(frozen=True)
class Drop:
    """Nobody needs what is kept under these numbers."""

    numbers: list[int]


@dataclass(frozen=True)
class Reset:
    """Start over with an empty pool."""


@dataclass(frozen=True)
class Heartbeat:
    """A follower is there; sent every second or so."""


@dataclass(frozen=True)
class RequestShutdown:
    """A follower has been told to end: the leader is to drain."""


@dataclass(frozen=True)
class Failed:
    """The sender cannot go on."""

    why: str


@dataclass(frozen=True)
class Close:
    """The work is done."""


Message = (
    Hello
    | Refused
    | StartJax
    | Gather
    | Gathered
    | Submit
    | SetSequenceState
    | Score
    | Read
    | Write
    | Copy
    | Copied
    | Drop
    | Reset
    | Heartbeat
    | RequestShutdown
    | Failed
    | Close
)
_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in Message.__args__}


def encode(message: Message) -> bytes:
    return bytes(msgpack_serialize([type(message).__name__, vars(message)]))


def decode(data: bytes) -> Message:
    """Raises:
    ValueError: it is no message.
    """
    try:
        kind, fields = msgpack_restore(data)
        return _KINDS[kind](**fields)
    except Exception as error:  # msgpack raises of many kinds
        raise ValueError(f"no message: {error!r}") from error
