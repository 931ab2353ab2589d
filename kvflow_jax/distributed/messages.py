"""Messages between the leader and its followers: plain data in msgpack, never code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore, msgpack_serialize


@dataclass(frozen=True)
class Hello:
    """A follower's first message.

    Attributes:
        host: the follower's host name.
        settings: value by flag of what decides programs and sizes; equal on all processes.
    """

    process_id: int
    num_processes: int
    host: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Refused:
    """The leader's answer to a process that may not join."""

    reason: str


@dataclass(frozen=True)
class StartJax:
    """All processes have joined. JAX's coordinator will listen on this port of process 0's host."""

    jax_port: int


@dataclass(frozen=True)
class Gather:
    """A follower's value in a gather; JSON-like."""

    value: Any


@dataclass(frozen=True)
class Gathered:
    """The values of all processes in a gather, by process id."""

    values: list[Any]


@dataclass(frozen=True)
class Submit:
    """Run a step; the fields of a ``Batch``.

    Attributes:
        shape_index: index of the batch's shape among the runner's shapes.
    """

    shape_index: int
    tokens: np.ndarray
    ints: np.ndarray
    floats: np.ndarray


@dataclass(frozen=True)
class SetSequenceState:
    """Call ``ModelRunner.set_sequence_state`` with a ``SequenceState`` of these fields."""

    sequence_state: dict[str, Any]


@dataclass(frozen=True)
class SetTokenMasks:
    """Call ``Runner.set_token_masks``."""

    mask_slots: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Score:
    """Call ``Runner.score``."""

    start: int
    targets: np.ndarray


@dataclass(frozen=True)
class Read:
    """Gather blocks from the pool into a new array."""

    array_id: int
    pages: np.ndarray


@dataclass(frozen=True)
class Write:
    """Scatter blocks of an array into the pool; see ``Runner.write_blocks``."""

    array_id: int
    indices: np.ndarray
    pages: np.ndarray


@dataclass(frozen=True)
class Copy:
    """Copy the array ``source_id`` to host or device, as the new array ``array_id``."""

    array_id: int
    source_id: int
    to_host: bool


@dataclass(frozen=True)
class Copied:
    """A follower's answer to ``Copy``, once its shards are copied.

    Attributes:
        error: why the copy failed; "" if it succeeded.
    """

    array_id: int
    error: str


@dataclass(frozen=True)
class Drop:
    """Drop the arrays of these ids."""

    array_ids: list[int]


@dataclass(frozen=True)
class Reset:
    """Start over with an empty pool."""


@dataclass(frozen=True)
class Heartbeat:
    """A follower is alive; sent every ``HEARTBEAT_S``."""


@dataclass(frozen=True)
class RequestShutdown:
    """A follower was asked to stop, so the leader is to drain and close the group."""


@dataclass(frozen=True)
class Failed:
    """The sender has failed and exits."""

    reason: str


@dataclass(frozen=True)
class Close:
    """The leader has drained: followers may exit."""


Message = (
    Hello
    | Refused
    | StartJax
    | Gather
    | Gathered
    | Submit
    | SetSequenceState
    | SetTokenMasks
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
_TYPES: dict[str, type[Message]] = {kind.__name__: kind for kind in Message.__args__}


def encode(message: Message) -> bytes:
    """Return a message as msgpack: the name of its type, then its fields."""
    return bytes(msgpack_serialize([type(message).__name__, vars(message)]))


def decode(data: bytes) -> Message:
    """Return the message that ``encode`` has written.

    Raises:
        ValueError: ``data`` is no message.
    """
    try:
        name, fields = msgpack_restore(data)
        return _TYPES[name](**fields)
    except Exception as error:  # msgpack raises many types
        raise ValueError(f"no message: {error!r}") from error
