"""Block table: the state of every block, as numpy arrays indexed by block id.

A *block* is page_size tokens of K and V for all layers, under a stable logical id. Its location is
an entry of this table, so moving a block rewrites nothing else. Device and host state are
independent:

    device   NONE ──▶ LOADING ──▶ VALID      has a page of the pool, unless NONE
    host     NONE ──▶ WRITING ──▶ VALID      belongs to a host extent, unless NONE

Freeing an id increments its generation, which invalidates references to its earlier use.
"""

from __future__ import annotations

import numpy as np

from kvflow_jax.cache.next_read import SUFFIX
from kvflow_jax.errors import CapacityError, IntegrityError

NO_BLOCK = -1
NO_PAGE = -1
NO_EXTENT = -1


# Plain ints, not enums: every step compares them with arrays.


class DeviceState:
    NONE = 0
    LOADING = 1
    VALID = 2


class HostState:
    NONE = 0
    WRITING = 1
    VALID = 2


class ScalarViews:
    """Memoryviews of the table's arrays, for code that handles one block at a time.

    They share the arrays' memory and read and write Python numbers, in half the time of a numpy
    scalar.
    """

    __slots__ = ("device_state", "head", "host_state", "leases", "num_children", "parent")

    def __init__(self, table: BlockTable) -> None:
        self.device_state = memoryview(table.device_state)
        self.host_state = memoryview(table.host_state)
        self.leases = memoryview(table.leases)
        self.parent = memoryview(table.parent)
        self.num_children = memoryview(table.num_children)
        self.head = memoryview(table.head)


class BlockTable:
    """State of ``num_blocks`` blocks, and allocator of the device pages 1..num_pages.

    Page 0 is the pool's null page and is never allocated.

    Attributes:
        page: i32[num_blocks], page of the pool; NO_PAGE if not on the device.
        device_state: u8[num_blocks], a DeviceState.
        host_state: u8[num_blocks], a HostState.
        extent: i32[num_blocks], number of its host extent, else NO_EXTENT.
        leases: i32[num_blocks], refcount: leases that include the block.
        parent: i32[num_blocks], preceding block of its indexed sequence, else NO_BLOCK.
        num_children: i32[num_blocks], indexed blocks with this parent that have a page.
        head: i32[num_blocks], first block of its node in the index; NO_BLOCK if not indexed.
        next_read: f64[num_blocks, 4], valid at the head of a node: the least NextRead of its
            readers, one field a column; SUFFIX if it has none.
        last_use: f64[num_blocks], seconds of the engine's clock.
        born: f64[num_blocks], when it got its page, seconds of the engine's clock.
        tenant: i32[num_blocks], index of the tenant of its tree (``TenantRooms``).
        depth: i32[num_blocks], number of blocks before an indexed block in its sequence.
        generation: u32[num_blocks], how often the id was freed.
        scalars: the same arrays, for access to one block at a time.
    """

    def __init__(self, num_blocks: int, num_pages: int) -> None:
        self.page = np.full(num_blocks, NO_PAGE, np.int32)
        self.device_state = np.zeros(num_blocks, np.uint8)
        self.host_state = np.zeros(num_blocks, np.uint8)
        self.extent = np.full(num_blocks, NO_EXTENT, np.int32)
        self.leases = np.zeros(num_blocks, np.int32)
        self.parent = np.full(num_blocks, NO_BLOCK, np.int32)
        self.num_children = np.zeros(num_blocks, np.int32)
        self.head = np.full(num_blocks, NO_BLOCK, np.int32)
        self.next_read = np.tile(np.array(SUFFIX, np.float64), (num_blocks, 1))
        self.last_use = np.zeros(num_blocks, np.float64)
        self.born = np.zeros(num_blocks, np.float64)
        self.tenant = np.zeros(num_blocks, np.int32)
        self.depth = np.zeros(num_blocks, np.int32)
        self.generation = np.zeros(num_blocks, np.uint32)
        self.scalars = ScalarViews(self)
        # Stacks: the id and page freed last are reused first, while they are warm in the cache.
        self._free_ids = list(range(num_blocks - 1, -1, -1))
        self._free_pages = list(range(num_pages, 0, -1))
        self._num_pages = num_pages

    @property
    def num_free_pages(self) -> int:
        return len(self._free_pages)

    @property
    def num_pages(self) -> int:
        return self._num_pages

    def allocate(self, count: int, now: float, tenant: int = 0) -> np.ndarray:
        """Allocate ``count`` blocks, each with a page of the pool, for a tenant.

        Returns:
            i32[count] block ids, valid on the device, unleased and not indexed.

        Raises:
            CapacityError: fewer ids or pages are free.
        """
        if count > min(len(self._free_pages), len(self._free_ids)):
            raise CapacityError(
                f"cannot allocate {count} blocks: {len(self._free_pages)} pages and "
                f"{len(self._free_ids)} ids are free"
            )
        if count == 0:
            return np.empty(0, np.int32)
        blocks = np.array(self._free_ids[-count:][::-1], np.int32)
        del self._free_ids[-count:]
        self.assign_pages(blocks, DeviceState.VALID, now)
        self.last_use[blocks] = now
        self.tenant[blocks] = tenant
        return blocks

    def assign_pages(self, blocks: np.ndarray, state: int, now: float) -> None:
        """Assign a page to each of ``blocks`` (i32[n]), none of which has one.

        Raises:
            CapacityError: fewer pages are free.
        """
        count = len(blocks)
        if count > len(self._free_pages):
            raise CapacityError(
                f"cannot assign {count} pages: {len(self._free_pages)} pages are free"
            )
        if count:
            self.page[blocks] = self._free_pages[-count:][::-1]
            del self._free_pages[-count:]
            self.device_state[blocks] = state
            self.born[blocks] = now

    def drop_pages(self, blocks: np.ndarray) -> None:
        """Free the pages of ``blocks`` (i32[n]) and keep their ids.

        The pages are reusable at once, because the device executes in order.
        """
        self._free_pages.extend(self.page[blocks].tolist())
        self.page[blocks] = NO_PAGE
        self.device_state[blocks] = DeviceState.NONE

    def move_page(self, source: int, target: int) -> None:
        """Move the page of block ``source`` to block ``target``, which has none."""
        self.page[target], self.page[source] = self.page[source], NO_PAGE
        self.device_state[target] = self.device_state[source]
        self.born[target] = self.born[source]
        self.device_state[source] = DeviceState.NONE

    def free(self, blocks: np.ndarray) -> None:
        """Free the ids of ``blocks`` (i32[n]), and the pages of those that have one.

        Raises:
            IntegrityError: a block is leased, indexed or on the host.
        """
        if not len(blocks):
            return
        in_use = self.leases[blocks] != 0
        in_use |= self.head[blocks] != NO_BLOCK
        in_use |= self.host_state[blocks] != HostState.NONE
        if in_use.any():
            raise IntegrityError(f"cannot free blocks {blocks[in_use].tolist()}: they are in use")
        with_page = blocks[self.page[blocks] != NO_PAGE]
        if len(with_page):
            self.drop_pages(with_page)
        self._free_ids.extend(blocks.tolist())
        self.generation[blocks] += 1

    def check_integrity(self) -> None:
        """Raise IntegrityError unless each id and each page is either free or in use once."""
        with_page = np.flatnonzero(self.page != NO_PAGE)
        pages = sorted(self._free_pages + self.page[with_page].tolist())
        if pages != list(range(1, self._num_pages + 1)):
            raise IntegrityError("a page is lost, or used twice")
        if ((self.device_state != DeviceState.NONE) != (self.page != NO_PAGE)).any():
            raise IntegrityError("the page of a block contradicts its device state")
        if ((self.host_state != HostState.NONE) != (self.extent != NO_EXTENT)).any():
            raise IntegrityError("the extent of a block contradicts its host state")
        used = np.flatnonzero((self.page != NO_PAGE) | (self.extent != NO_EXTENT))
        if sorted(self._free_ids + used.tolist()) != list(range(len(self.page))):
            raise IntegrityError("a block id is lost, or free and in use at once")
        free = np.array(self._free_ids, np.int32)
        if self.leases[free].any() or (self.head[free] != NO_BLOCK).any():
            raise IntegrityError("a free block is leased or indexed")
        if (self.leases < 0).any() or (self.num_children < 0).any():
            raise IntegrityError("a lease count or a count of children is negative")
