"""What the scheduler has decided for one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from kvflow_jax.cache.prefix_cache import Lease
from kvflow_jax.requests.request import Chunk, Request


class Preempted(NamedTuple):
    """A request that is back in the queue, and how many of its tokens were computed."""

    request: Request
    num_computed: int


@dataclass(slots=True)
class StepPlan:
    """The chunks that one step computes, and the blocks that it published before computing them.

    Attributes:
        admitted: requests that start, or restart after a preemption, with this step.
        preempted: requests that are preempted to make room.
        published: (lease, its number of indexed blocks before), in order of publishing.
        prefill_lengths: tokens of each chunk that takes tiles rather than a decode row.
    """

    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Preempted] = field(default_factory=list)
    published: list[tuple[Lease, int]] = field(default_factory=list)
    prefill_lengths: list[int] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Steps that the plan takes on the device."""
        return 1

    @property
    def num_draft_tokens(self) -> int:
        """Drafted tokens that the step verifies."""
        return sum(len(chunk.draft) for chunk in self.chunks)
