"""Which runs of workflows go on at a time, where they read more again than the cache holds.

Where many take turns then, each finds that the others have evicted what it had computed, and all
compute it anew: the cache thrashes, whatever its order of eviction. As an operating system does
(Denning 1968, working sets), some are held back then, whole runs, and the others go on without loss
until they end, wait long for a tool, or have had their turn.

    arrives ──▶ queued ──there is room──▶ active ──▶ ends
                  ▲                          │
                  └──calls──── parked ◀──────┘ waits long; too many; had its turn

How much room there is shows in use, as with congestion of a network: it shrinks while much time
goes into computing again what had been there, and grows while none does. What a parked run reads is
not expected soon, and goes first. Calls that have arrived by then go on, and nothing else is held
back. Decoding takes longer where fewer share a step: runs are held back only while what would be
lost without that is more.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import islice
from operator import itemgetter

import numpy as np

from kvflow_jax.control.admission.working_sets import WorkingSets
from kvflow_jax.control.idle_time_quantile import IdleTimeQuantile
from kvflow_jax.errors import IntegrityError

HIGH, LOW = 0.2, 0.05  # shares of lost time from which on room shrinks, and until which it grows
RATE = 0.02  # how fast, of the room, a second
MEMORY_S = 60.0  # how long lost time is remembered
# Of the time, what runs that are held back may cost by sharing no step: the others end the sooner,
# so that all wait less on average where as much is done.
TOLERANCE = 0.25
LEAST = 0.8  # of the cache; working sets that take no more are never held back
TURN = 32  # a run that is swapped for another has been active so many times as long as that costs
MIN_TURN_S = 10.0
_DECIDE_EVERY_S = 1.0
_LOOKED_AT = 16  # queued runs, of which the others are thought to be like


class AdmissionControl:
    """Decides which runs are active. Names of runs are the caller's, and so are those of readers:
    agents and conversations, that read something again. Keys are those of ``block_hashes``.

    Args:
        num_blocks: that the cache holds, on all tiers that are worth reading from.
        compute_s: seconds to compute so many blocks. Who is held back finds nothing: were there
            room for what he reads, on whichever tier, he would go on.
        decode_s: seconds so far in steps that computed no prompt.
        park: is told of runs that are held back from now on.
        resume: and of those that go on.
    """

    def __init__(
        self,
        num_blocks: Callable[[], int],
        compute_s: Callable[[int], float],
        decode_s: Callable[[], float],
        park: Callable[[Hashable], object],
        resume: Callable[[Hashable], object],
    ) -> None:
        self._num_blocks, self._compute_s = num_blocks, compute_s
        self._decode_s = decode_s
        self._park, self._resume = park, resume
        self._sets = WorkingSets()
        self._readers: dict[Hashable, set[Hashable]] = {}  # of each run
        self._calls: Counter[Hashable] = Counter()  # of each run, that have not ended
        self._active: OrderedDict[Hashable, float] = OrderedDict()  # since when, longest first
        self._queue: OrderedDict[Hashable, float] = OrderedDict()  # of parked runs with calls
        self._idle: OrderedDict[Hashable, float] = OrderedDict()  # of runs without calls
        self._priority: dict[Hashable, int] = {}  # of runs, as their last call has it
        self._room = math.inf  # for keys
        self._lost_share = 0.0
        self._lost_s = 0.0  # since the room was last looked at
        self._looked_s = -math.inf
        self._idle_times = IdleTimeQuantile()
        self._lost_before = self._decode_share = self._decoded_s = 0.0

    @property
    def num_queued(self) -> int:
        """Runs that want to go on and are held back."""
        return len(self._queue)

    @property
    def num_held(self) -> int:
        """Blocks that active runs read again."""
        return self._sets.num_held

    def is_throttled(self, run: Hashable) -> bool:
        """Whether calls of a run have to wait."""
        return run in self._queue

    # Who reads what.

    def reads(self, reader: Hashable, keys: np.ndarray) -> None:
        """What an reader reads again, i64[n]."""
        self._sets.reads(reader, keys)

    def forget(self, reader: Hashable) -> None:
        """An reader reads nothing again."""
        self._sets.forget(reader)

    def found(self, keys: np.ndarray, num_found: int, readers: Iterable[Hashable]) -> None:
        """A prompt i64[n] was read and computed, as far as ``num_found`` blocks were not there.

        What of it its readers had read before was computed in vain, unless they were held back.
        """
        self._lost_s += self._compute_s(self._sets.num_lost(keys, num_found, readers))

    def lose_all(self) -> None:
        """The cache is empty; whoever reads next had no chance to find anything."""
        self._sets.lose_all()

    # A run's life.

    def call(
        self, run: Hashable, readers: Iterable[Hashable], now: float, *, priority: int = 0
    ) -> None:
        """A call of a run has arrived.

        Args:
            readers: that the run makes use of, now or later.
            priority: who has a higher one goes on sooner, and for nobody with a lower one waits.
        """
        idle_since_s = self._idle.pop(run, None)
        if idle_since_s is not None:
            self._idle_times.note(now - idle_since_s)
        self._calls[run] += 1
        self._priority[run] = priority
        self._readers.setdefault(run, set())
        self.join(run, readers)
        if run in self._active:
            return
        self._queue.setdefault(run, now)
        if self._num_more(run):
            self._take_in(now)
        else:
            self._go_on(run, now)  # it takes no room that others wait for

    def join(self, run: Hashable, readers: Iterable[Hashable]) -> None:
        """A run makes use of more readers; nothing happens where it is over."""
        known = self._readers.get(run)
        if known is None:
            return
        news = set(readers) - known
        known |= news
        if run in self._active:
            self._sets.use(news)

    def leave(self, run: Hashable, reader: Hashable) -> None:
        """A run makes use of an reader no longer; fine where it did not."""
        if reader in self._readers.get(run, ()):
            self._readers[run].remove(reader)
            if run in self._active:
                self._sets.leave([reader])

    def called(self, run: Hashable, now: float) -> None:
        """A call of a run has ended."""
        self._calls[run] -= 1
        if self._calls[run] > 0:
            return
        del self._calls[run]
        self._queue.pop(run, None)  # whoever waited has given up
        if run in self._readers:  # else it is over
            self._idle[run] = now

    def end(self, run: Hashable) -> None:
        """A run is over."""
        self._queue.pop(run, None)
        self._idle.pop(run, None)
        self._priority.pop(run, None)
        readers = self._readers.pop(run, set())
        if self._active.pop(run, None) is not None:
            self._sets.leave(readers)

    def decide(self, now: float) -> None:
        """Park and resume runs, as things stand. Call it often; it looks now and then."""
        if now - self._looked_s < _DECIDE_EVERY_S:
            return
        self._adapt(now)
        while self.num_held > self._room:
            victim = self._waits_long(now) or self._newest()
            if victim is None:
                break
            self._hold_back(victim)
        self._take_in(now)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the counts are those of the runs that are active."""
        self._sets.check_integrity(
            Counter(reader for run in self._active for reader in self._readers[run])
        )
        if self._queue.keys() & self._active.keys() or not self._queue.keys() <= self._calls.keys():
            raise IntegrityError("a run waits for a turn that it has, or does not want")

    def _adapt(self, now: float) -> None:
        """Leave working sets less room while time is lost, and more while none is."""
        passed_s = min(now - self._looked_s, MEMORY_S)
        fresh = 1.0 - math.exp(-passed_s / MEMORY_S)
        self._lost_share += fresh * (self._lost_s / passed_s - self._lost_share)
        self._looked_s, self._lost_s = now, 0.0
        decoded_s = self._decode_s()
        share = (decoded_s - self._decoded_s) / passed_s
        self._decode_share += fresh * (share - self._decode_share)
        self._decoded_s = decoded_s
        if self._queue and not self._pays():
            self._room = math.inf
        elif self._lost_share > HIGH:
            least = LEAST * self._num_blocks()
            if not self._queue:
                self._lost_before = self._lost_share
                if self._slowdown(self.num_held - least, least) > self._lost_share:
                    return
            room = min(self._room, self.num_held) * math.exp(-RATE * passed_s)
            self._room = max(room, least)
        elif self._lost_share < LOW:
            self._room *= math.exp(RATE * passed_s)

    def _pays(self) -> bool:
        """Whether those that are held back would cost more time if they went on."""
        some = list(islice(self._queue, _LOOKED_AT))
        num_queued = sum(map(self._num_more, some)) / len(some) * len(self._queue)
        saved = self._lost_before - self._lost_share
        return saved > self._slowdown(num_queued, self.num_held + num_queued) - TOLERANCE

    def _slowdown(self, num_queued: float, num_others: float) -> float:
        """Share of the time that it costs to decode without those that are held back.

        A decode step takes about as long with few rows as with many, so that as many more are
        needed as fewer share them.

        Args:
            num_queued, num_others: blocks that those read, to what their number is compared.
        """
        return self._decode_share * max(0.0, num_queued) / max(1.0, num_others)

    def _take_in(self, now: float) -> None:
        """Let runs go on for which there is room, by priority, then who waits longest first."""
        while self._queue:
            run = max(self._queue, key=self._priority.__getitem__)  # the first of the highest
            if not self._make_room(run, now):
                return
            self._go_on(run, now)

    def _make_room(self, run: Hashable, now: float) -> bool:
        """Hold back whom a queued run takes the place of; False, and nobody is, where that is not
        enough."""
        left: list[tuple[Hashable, float]] = []
        while self._active and (num := self._num_more(run)) and self.num_held + num > self._room:
            victim = self._waits_long(now) or self._makes_way(run, num, now)
            if victim is None:
                for other, since_s in left:
                    self._active[other] = since_s
                    self._sets.use(self._readers[other], have_read=True)
                self._active = OrderedDict(sorted(self._active.items(), key=itemgetter(1)))
                return False
            left.append((victim, self._active.pop(victim)))
            self._sets.leave(self._readers[victim])
        for victim, _ in left:
            self._park(victim)
        return True

    def _go_on(self, run: Hashable, now: float) -> None:
        del self._queue[run]
        self._active[run] = now
        self._sets.use(self._readers[run])
        self._resume(run)

    def _hold_back(self, run: Hashable) -> None:
        del self._active[run]
        self._sets.leave(self._readers[run])
        self._park(run)

    def _waits_long(self, now: float) -> Hashable | None:
        """The active run that waits longest for its next call, if that is long.

        Long is longer than most waits are, and than to have again what it reads would take: whoever
        keeps it for as long loses at most twice what he must (Continuum, arXiv 2511.02230).
        """
        for run, since_s in self._idle.items():
            if run in self._active:
                num = self._sets.num_read(self._readers[run])
                return (
                    run if now - since_s > self._idle_times.long_s + self._compute_s(num) else None
                )
        return None

    def _newest(self) -> Hashable | None:
        """The run active shortest of those of the lowest priority without which less is held, the
        last one excepted."""
        if len(self._active) < 2:
            return None
        newest_first = list(self._active)[::-1]
        for run in sorted(newest_first, key=self._priority.__getitem__):
            if self._sets.are_needed(self._readers[run]):
                return run
        return None

    def _makes_way(self, run: Hashable, num: int, now: float) -> Hashable | None:
        """The active run that is held back for a queued one, if there is any that should be.

        One of lower priority is; of equal priority the one active longest, if it has been for long
        enough to be swapped.

        Args:
            num: blocks that the queued run reads and nobody else.
        """
        if not self._active:
            return None
        own = self._priority[run]
        least = min(self._active, key=self._priority.__getitem__)
        if self._priority[least] < own:
            return least
        turn_s = max(MIN_TURN_S, TURN * self._compute_s(num))
        for other, since_s in self._active.items():
            if self._priority[other] == own:
                is_over = now - max(self._queue[run], since_s) > turn_s
                return other if is_over else None
        return None

    def _num_more(self, run: Hashable) -> int:
        """Blocks that a run reads again and no active one does."""
        return self._sets.num_more(self._readers[run])
