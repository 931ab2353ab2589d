"""The block table: what is true of each block, as numpy arrays by block id.

A *block* is page_size tokens of K and V for all layers under a stable logical id. Where it lives
is a fact of the table, so moving it rewrites nothing else. Two facts, independent of each other:

    device   NONE ──▶ LOADING ──▶ VALID      a slot of the pool, unless NONE
    host     NONE ──▶ WRITING ──▶ VALID      a place in a host extent, unless NONE

An id that is freed and taken again has another generation: whoever still names the old one can
tell.
"""

from __future__ import annotations

import numpy as np

from kvflow_jax.errors import CapacityError, IntegrityError

NO_BLOCK = -1
NO_PAGE = -1
NO_EXTENT = -1
SUFFIX = np.inf  # steps of a block that nobody is known to read again


# Plain numbers, not enums: they are compared with arrays in every step.


class DeviceState:
    NONE = 0
    LOADING = 1
    VALID = 2


class HostState:
    NONE = 0
    WRITING = 1
    VALID = 2


class ScalarViews:
    """The table's arrays for code that asks of one block at a time.

    The same memory, read and written as Python numbers: half the time of a numpy scalar.
    """

    __slots__ = ("device_state", "head", "host_state", "leases", "num_children", "parent", "steps")

    def __init__(self, table: BlockTable) -> None:
        self.device_state = memoryview(table.device_state)
        self.host_state = memoryview(table.host_state)
        self.leases = memoryview(table.leases)
        self.parent = memoryview(table.parent)
        self.num_children = memoryview(table.num_children)
        self.head = memoryview(table.head)
        self.steps = memoryview(table.steps)


class BlockTable:
    """Facts of ``num_blocks`` blocks and the device slots 1..num_pages that they can take.

    Slot 0 is the pool's null page and never given out.

    Attributes:
        slot: i32[num_blocks], page of the pool, NO_PAGE where not on the device.
        device_state: u8[num_blocks], a DeviceState.
        host_state: u8[num_blocks], a HostState.
        extent: i32[num_blocks], the host extent it has a place in, else NO_EXTENT.
        leases: i32[num_blocks], how many leases hold the block.
        parent: i32[num_blocks], the block before it in its indexed sequence, else NO_BLOCK.
        num_children: i32[num_blocks], indexed blocks whose parent it is and that have a slot.
        head: i32[num_blocks], first block of its node in the index; NO_BLOCK: not indexed.
        steps: f64[num_blocks], by head of a node: steps-to-execution of the agents that will read
            the node, the least of them; SUFFIX where none is known.
        last_use: f64[num_blocks], seconds of the engine's clock.
        depth: i32[num_blocks], of an indexed block, how many come before it in its sequence.
        generation: u32[num_blocks], counts how often the id was freed.
        one: the same, of one block at a time.
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
        self.steps = np.full(num_blocks, SUFFIX, np.float64)
        self.last_use = np.zeros(num_blocks, np.float64)
        self.depth = np.zeros(num_blocks, np.int32)
        self.generation = np.zeros(num_blocks, np.uint32)
        self.scalars = ScalarViews(self)
        # Stacks: the id and slot freed last are taken first, while they are warm.
        self._free_ids = list(range(num_blocks - 1, -1, -1))
        self._free_pages = list(range(num_pages, 0, -1))
        self._num_pages = num_pages

    @property
    def num_free_pages(self) -> int:
        return len(self._free_pages)

    @property
    def num_pages(self) -> int:
        return self._num_pages

    def allocate(self, count: int, now: float) -> np.ndarray:
        """Take ``count`` fresh blocks, each with a device slot.

        Returns:
            i32[count] block ids, valid on the device, unleased and not indexed.

        Raises:
            CapacityError: fewer ids or slots are free.
        """
        if count > min(len(self._free_pages), len(self._free_ids)):
            raise CapacityError(f"{count} blocks asked for, {len(self._free_pages)} are free")
        if count == 0:
            return np.empty(0, np.int32)
        blocks = np.array(self._free_ids[-count:][::-1], np.int32)
        del self._free_ids[-count:]
        self.assign_pages(blocks, DeviceState.VALID)
        self.last_use[blocks] = now
        return blocks

    def assign_pages(self, blocks: np.ndarray, state: int) -> None:
        """Give a device slot to each of ``blocks`` (i32[n]), which have none.

        Raises:
            CapacityError: fewer slots are free.
        """
        count = len(blocks)
        if count > len(self._free_pages):
            raise CapacityError(f"{count} slots asked for, {len(self._free_pages)} are free")
        if count:
            self.page[blocks] = self._free_pages[-count:][::-1]
            del self._free_pages[-count:]
            self.device_state[blocks] = state

    def drop_pages(self, blocks: np.ndarray) -> None:
        """Take the device slots of ``blocks`` (i32[n]) back; their ids stay.

        The device runs in order, so the slots are reusable at once.
        """
        self._free_pages.extend(self.page[blocks].tolist())
        self.page[blocks] = NO_PAGE
        self.device_state[blocks] = DeviceState.NONE

    def move_page(self, source: int, target: int) -> None:
        """Give the slot of one block to another, which has none."""
        self.page[target], self.page[source] = self.page[source], NO_PAGE
        self.device_state[target] = self.device_state[source]
        self.device_state[source] = DeviceState.NONE

    def free(self, blocks: np.ndarray) -> None:
        """Give ids back, and the slots of those that have one.

        Raises:
            IntegrityError: a block is leased, indexed, on the host or free already.
        """
        if not len(blocks):
            return
        in_use = self.leases[blocks] != 0
        in_use |= self.head[blocks] != NO_BLOCK
        in_use |= self.host_state[blocks] != HostState.NONE
        if in_use.any():
            raise IntegrityError(f"blocks {blocks[in_use].tolist()} are in use, not to be freed")
        with_slot = blocks[self.page[blocks] != NO_PAGE]
        if len(with_slot):
            self.drop_pages(with_slot)
        self._free_ids.extend(blocks.tolist())
        self.generation[blocks] += 1

    def check_integrity(self) -> None:
        """Raise IntegrityError unless ids and slots are each in exactly one place."""
        with_slot = np.flatnonzero(self.page != NO_PAGE)
        slots = sorted(self._free_pages + self.page[with_slot].tolist())
        if slots != list(range(1, self._num_pages + 1)):
            raise IntegrityError("a device slot is lost, or held twice")
        if ((self.device_state != DeviceState.NONE) != (self.page != NO_PAGE)).any():
            raise IntegrityError("a block's slot and its device state contradict each other")
        if ((self.host_state != HostState.NONE) != (self.extent != NO_EXTENT)).any():
            raise IntegrityError("a block's extent and its host state contradict each other")
        used = np.flatnonzero((self.page != NO_PAGE) | (self.extent != NO_EXTENT))
        if sorted(self._free_ids + used.tolist()) != list(range(len(self.page))):
            raise IntegrityError("a block id is lost, or free and in use at once")
        free = np.array(self._free_ids, np.int32)
        if self.leases[free].any() or (self.head[free] != NO_BLOCK).any():
            raise IntegrityError("a free block is leased or indexed")
        if (self.leases < 0).any() or (self.num_children < 0).any():
            raise IntegrityError("a count of leases or children is negative")
