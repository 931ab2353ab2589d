"""The waiting requests, fair among tenants, and within a tenant among its users.

    tenants, the least served first ──▶ users, by start-time fair queueing ──▶ requests

Service is counted in tokens computed, as by the Virtual Token Counter (Sheng et al., "Fairness in
Serving Large Language Models", OSDI 2024). What a caller says of itself, its priority and its
user, orders the requests of its own tenant only; ``rank`` orders those of different tenants.

Prompts of a tenant do not run one after the other: the next rows are for the prompt that would end
first if all of them shared the rows equally, as by weighted fair queueing (Demers, Keshav, Shenker,
"Analysis and Simulation of a Fair Queueing Algorithm", SIGCOMM 1989). A short prompt then does not
wait for a long one that came before it, and no prompt waits longer than with equal shares.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from operator import attrgetter

from kvflow_jax.requests.request import Request

Turn = tuple[int, str]  # rank, tenant

_BY_ORDER = attrgetter("order")
_BY_FINISH = attrgetter("prompt_order")


class _Tenant:
    """A tenant with waiting or running requests.

    Attributes:
        service: tokens computed for it, counted from the service of others when it came.
        num_waiting, num_running: its requests.
        virtual_time: the largest virtual start of its admitted requests.
        prompt_time: prompt tokens that each of its prompts would have got with equal shares.
        last_start: the last virtual start of each user with waiting requests.
    """

    __slots__ = (
        *("last_start", "num_running", "num_waiting", "number", "prompt_time", "service"),
        "virtual_time",
    )

    def __init__(self, number: int, service: int) -> None:
        self.number, self.service = number, service
        self.num_waiting = self.num_running = 0
        self.virtual_time = 0
        self.prompt_time = 0.0
        self.last_start: dict[str, int] = {}


class FairQueue:
    """The waiting requests of a scheduler, and how much each tenant was served.

    ``len`` counts the waiting requests; iteration yields them, the next tenant's first.
    """

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._waiting: dict[Turn, list[Request]] = {}  # each sorted by ``Request.order``
        self._num_waiting = 0
        self._numbers = count()

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Request]:
        for turn in self.turns():
            yield from self._waiting[turn]

    @property
    def num_tenants(self) -> int:
        """Tenants with waiting or running requests."""
        return len(self._tenants)

    def num_running(self, tenant: str) -> int:
        """Return how many requests of a tenant with waiting requests run."""
        return self._tenants[tenant].num_running

    def add(self, request: Request, num_to_compute: int = 0) -> None:
        """Queue a new request, with a virtual start 1 after the last of its user.

        Within a tenant this is start-time fair queueing with requests as the unit of service. A
        user that queues a hundred requests at once does not wait longer for the first of them, and
        a request of another user that arrives later runs right after that first one.

        Args:
            num_to_compute: prompt tokens that are not cached.
        """
        tenant = self._tenants.get(request.share)
        if tenant is None:
            # Neither a debt nor a claim from the time when it asked for nothing.
            service = min((other.service for other in self._tenants.values()), default=0)
            tenant = self._tenants[request.share] = _Tenant(next(self._numbers), service)
        last_start = tenant.last_start
        if not tenant.num_waiting:
            last_start.clear()
        elif len(last_start) > 2 * tenant.num_waiting + 64:
            # Callers choose the names of users: keep those that wait.
            users = {
                r.user
                for turn, own in self._waiting.items()
                if turn[1] == request.share
                for r in own
            }
            tenant.last_start = last_start = {
                user: start for user, start in last_start.items() if user in users
            }
        start = max(tenant.virtual_time, last_start.get(request.user, -1) + 1)
        request.virtual_start = last_start[request.user] = start
        request.virtual_finish = tenant.prompt_time + num_to_compute
        self._insert(request)

    def admit(self, request: Request) -> None:
        """Move a waiting request to the running ones."""
        self._take(request)
        tenant = self._tenants[request.share]
        tenant.num_running += 1
        tenant.virtual_time = max(tenant.virtual_time, request.virtual_start)

    def requeue(self, request: Request) -> None:
        """Move a running request back to the waiting ones."""
        self._tenants[request.share].num_running -= 1
        self._insert(request)

    def end(self, request: Request, *, is_running: bool) -> None:
        """Forget a request, running or waiting; does nothing for one that was forgotten."""
        if is_running:
            self._tenants[request.share].num_running -= 1
        elif not self._take(request):
            return
        tenant = self._tenants[request.share]
        if not tenant.num_running and not tenant.num_waiting:
            del self._tenants[request.share]

    def serve(self, tenant: str, num_tokens: int) -> None:
        """Count tokens computed for a tenant with running requests."""
        self._tenants[tenant].service += num_tokens

    def serve_prompts(self, tenant: str, num_tokens: int, num_running: int) -> None:
        """Count prompt tokens that a step computes for a tenant.

        Args:
            num_running: running requests of the tenant whose prompts are not computed.
        """
        state = self._tenants[tenant]
        state.prompt_time += num_tokens / max(1, num_running + state.num_waiting)

    def overtaking(self, turn: Turn, prompts: Sequence[Request]) -> list[Request]:
        """Return the waiting requests of a turn whose prompts precede one that runs, in order."""
        last = max(map(_BY_FINISH, prompts), default=None)
        if last is None:
            return []
        before = [r for r in self._waiting.get(turn, ()) if _BY_FINISH(r) < last]
        return sorted(before, key=_BY_FINISH)

    def turns(self, running: Iterable[Turn] = ()) -> list[Turn]:
        """Return whose turn it is, in order: those with waiting requests, and those given."""

        def key(turn: Turn) -> tuple[int, int, int, int]:
            tenant = self._tenants[turn[1]]
            return -turn[0], tenant.service, tenant.num_running, tenant.number

        return sorted({*self._waiting, *running}, key=key)

    def of(self, turn: Turn) -> list[Request]:
        """Return the waiting requests of a turn, in order."""
        return list(self._waiting.get(turn, ()))

    def _insert(self, request: Request) -> None:
        waiting = self._waiting.setdefault((request.rank, request.share), [])
        insort(waiting, request, key=_BY_ORDER)
        self._tenants[request.share].num_waiting += 1
        self._num_waiting += 1

    def _take(self, request: Request) -> bool:
        """Remove a waiting request; return False if it does not wait."""
        turn = request.rank, request.share
        waiting = self._waiting.get(turn, [])
        index = bisect_left(waiting, request.order, key=_BY_ORDER)
        if index == len(waiting) or waiting[index] is not request:
            return False
        del waiting[index]
        if not waiting:
            del self._waiting[turn]
        self._tenants[request.share].num_waiting -= 1
        self._num_waiting -= 1
        return True
