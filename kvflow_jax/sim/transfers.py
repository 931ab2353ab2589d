"""Simulated transfers, which only take virtual time beside the steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.sim.profile import Profile
from kvflow_jax.sim.runner import SimBlocks


class SimTransfers:
    """Transfers at the profile's rate, one at a time in each direction."""

    def __init__(self, clock: VirtualClock, profile: Profile) -> None:
        self.bytes_per_s = dict.fromkeys(Direction, profile.link_bytes_per_s)
        self._clock = clock
        self._profile = profile
        self._free_s = dict.fromkeys(Direction, 0.0)
        self._done: list[Transfer] = []
        self._notify: Callable[[], object] = lambda: None

    def submit(self, transfer: Transfer) -> None:
        direction = transfer.direction
        transfer.started_s = max(self._clock.now(), self._free_s[direction])
        # An offload waits until the device has copied the blocks out of the pool.
        data: SimBlocks = transfer.data
        begin_s = max(transfer.started_s, data.ready_s)
        transfer.finished_s = begin_s + self._profile.transfer_s(transfer.nbytes)
        self._free_s[direction] = transfer.finished_s
        transfer.is_issued.set()
        self._clock.schedule(transfer.finished_s, partial(self._finish, transfer))

    def wait_issued(self, transfer: Transfer, timeout_s: float) -> None:
        """Return at once: the simulated device enqueues a transfer when it is submitted."""

    def poll(self) -> list[Transfer]:
        done, self._done = self._done, []
        return done

    def listen(self, notify: Callable[[], object]) -> None:
        self._notify = notify

    def close(self) -> None: ...

    def _finish(self, transfer: Transfer) -> None:
        self._done.append(transfer)
        self._notify()
