"""A prefix cache with simulated pages and transfers, in which a wrong page shows."""

from __future__ import annotations

import numpy as np

from kvflow_jax.cache.blocks import DeviceState
from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.next_read import UNKNOWN, NextRead, scheduled
from kvflow_jax.cache.policy import kvflow
from kvflow_jax.cache.prefix_cache import PrefixCache, has_reader

PAGE = 2
ROOT = RootKey("model")


def root_of(tenant):
    return ROOT._replace(tenant=tenant)


def ids(*tokens):
    return np.array(tokens, np.int32)


def read_in(steps):
    """The read by an agent that runs in that many steps; a NextRead is returned as it is."""
    return steps if isinstance(steps, NextRead) else scheduled(float(steps))


def node_of(cache, reader):
    """The node that a reader is attached to; None if it is not, or no longer."""
    record = cache._readers._attachments.get(reader)
    return None if record is None else record.head


def prompt(agent, length=8):
    return [agent] * length


def content_of(lease, tokens, i):
    """What the page of block ``i`` of a lease on ``tokens`` contains."""
    return lease.root.tenant, *(int(token) for token in tokens[: (i + 1) * PAGE])


class TieredCache:
    """A cache over pages whose content is a tenant and the token sequence up to their end."""

    def __init__(
        self, num_pages=8, num_host=8, order=kvflow, should_offload=has_reader, sizes=(1, 4)
    ):
        self.cache = PrefixCache(
            num_pages,
            PAGE,
            order,
            num_host_blocks=num_host,
            extent_sizes=sizes,
            should_offload=should_offload,
        )
        self.contents: dict[int, tuple] = {}  # by page
        self.now = 0.0
        self.loads = []  # in flight
        self.offloads = []  # in flight: (extent, contents read)

    @property
    def residency(self):
        return self.cache._residency

    def loadable(self, reader):
        """The blocks of a reader's prefix that can be loaded, i32[n]."""
        return self.cache.tiers.loadable_blocks(node_of(self.cache, reader))

    def num_usable(self, tokens):
        """Number of blocks of ``tokens`` that are on the device or can be loaded."""
        return self.cache.state_of(self.path(tokens)).num_usable

    def dispatch(self):
        """Start the planned transfers, as the engine does before a step."""
        plans = self.cache.tiers.drain_plans()
        for offload in plans.offloads:
            contents = [self.contents[page] for page in offload.pages.tolist()]
            self.offloads.append((offload.extent, contents))
        self.loads += plans.loads

    def complete_load(self, load):
        indices, pages = self.residency.complete_load(load)
        for index, page in zip(indices.tolist(), pages.tolist(), strict=True):
            self.contents[page] = load.extent.data[index]

    def settle(self):
        """Complete every transfer."""
        self.dispatch()
        while self.loads or self.offloads:
            while self.offloads:
                self.residency.complete_offload(*self.offloads.pop(0))
            while self.loads:
                self.complete_load(self.loads.pop(0))
            self.dispatch()

    def lease(self, tokens, tenant=""):
        """Lease the cached prefix of ``tokens``; None if there is no room for it."""
        matched = self.path(tokens, tenant)
        matched = matched[: self.cache.state_of(matched).num_usable]
        if not self.cache.has_room(matched, len(matched), num_reserved=0, tenant=tenant):
            return None
        self.now += 1
        lease = self.cache.lease(root_of(tenant), matched, self.now)
        self.dispatch()
        return lease

    def compute(self, lease, tokens):
        """Write the rest of ``tokens``, as a step would; False if there is no room for it."""
        tokens = np.asarray(tokens, np.int32)
        num = len(tokens) // PAGE - len(lease)
        if num < 0 or not self.cache.grow(lease, num, self.now):
            return False
        # Pages are read by offloads before the step overwrites them.
        self.dispatch()
        start = len(lease) - num
        for i, page in enumerate(self.cache._table.page[lease.blocks[start:]].tolist(), start):
            self.contents[page] = content_of(lease, tokens, i)
        self.cache.publish(lease, tokens)
        return True

    def serve(self, tokens, reader=None, steps=UNKNOWN, num_fixed=None, tenant=""):
        """Compute ``tokens`` and end the request, whose first ``num_fixed`` have a reader."""
        lease = self.lease(tokens, tenant)
        self.settle()
        assert self.compute(lease, tokens)
        self.check(lease, tokens)
        if reader is not None:
            prefix = np.asarray(tokens[: num_fixed or len(tokens)], np.int32)
            self.cache.set_reader(reader, root_of(tenant), prefix, read_in(steps))
        self.now += 1
        self.cache.release(lease, self.now)
        self.cache.check_integrity()
        return lease

    def check(self, lease, tokens):
        """Assert that the content of a lease's pages is its own sequence."""
        for i, block in enumerate(lease.blocks.tolist()):
            if self.cache._table.device_state[block] == DeviceState.VALID:
                page = int(self.cache._table.page[block])
                assert self.contents[page] == content_of(lease, tokens, i)

    def path(self, tokens, tenant=""):
        """The cached blocks of ``tokens``."""
        return self.cache.match(root_of(tenant), np.asarray(tokens, np.int32))

    def num_resident(self, tokens, tenant=""):
        """Number of blocks of ``tokens`` on the device, and on either tier."""
        path = self.path(tokens, tenant)
        return self.residency.num_on_device(path), len(path)
