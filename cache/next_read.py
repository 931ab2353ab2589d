"""Next read of a cached prefix: how far away it is, and how likely.

Facts of one reader, or of the soonest of several. ``BlockTable.next_read`` keeps the same facts as
columns, which the policies read.
"""

from __future__ import annotations

from typing import NamedTuple


# Plain ints, not enums: they are table columns, and are hashed and compared for each change.
class ReadKind:
    """What is known about the next read; kinds that are read sooner are less."""

    SCHEDULED = 0  # the distance of the read is known
    UNKNOWN = 1  # there is a reader, in no known order
    THROTTLED = 2  # the reader's run waits for admission control, or seems abandoned
    NEVER = 3  # the reader's agent will not run again
    SUFFIX = 4  # no reader: a dynamic suffix


class NextRead(NamedTuple):
    """The next read of a prefix. Tuples compare in the order of reads: the soonest is the least.

    Attributes:
        kind: a ReadKind.
        distance: steps-to-execution of the reader; of a THROTTLED one, once it is resumed; else 0.
        skips_prefetch: whether no blocks are loaded for the read. It is on one of the less likely
            branches, or in the next call of a running agent at the earliest; or its caller says so.
        miss_chance: probability that the read does not happen at this distance, 0 to 1.
    """

    kind: int
    distance: float = 0.0
    skips_prefetch: bool = False
    miss_chance: float = 0.0

    @property
    def is_scheduled(self) -> bool:
        """Whether the distance of the read is known."""
        return self.kind == ReadKind.SCHEDULED

    @property
    def is_prefetched(self) -> bool:
        """Whether blocks are loaded before a request asks for them."""
        return self.is_scheduled and not self.skips_prefetch

    def without_prefetch(self) -> NextRead:
        """Return the next read by the same reader if nothing may be loaded for it ahead."""
        return self._replace(skips_prefetch=True) if self.is_scheduled else self

    def throttled(self) -> NextRead:
        """Return the next read by the same reader while its run is throttled."""
        if self.kind == ReadKind.NEVER:
            return self
        return self._replace(kind=ReadKind.THROTTLED)


RUNNING = NextRead(ReadKind.SCHEDULED)
UNKNOWN = NextRead(ReadKind.UNKNOWN)
NEVER = NextRead(ReadKind.NEVER)
SUFFIX = NextRead(ReadKind.SUFFIX)


def scheduled(distance: float, *, chance: float = 1.0, skips_prefetch: bool = False) -> NextRead:
    """Return the read by an agent that runs in ``distance`` steps with probability ``chance``."""
    return NextRead(ReadKind.SCHEDULED, distance, skips_prefetch, 1.0 - chance)
