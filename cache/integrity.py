"""What must hold between the index, the block table and the leases. For tests and for doubt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, NO_PAGE, BlockTable, HostState
from kvflow_jax.cache.index import RadixIndex, RootKey
from kvflow_jax.errors import IntegrityError


class NodeFacts(Protocol):
    """What is kept of a node by its first block."""

    @property
    def key(self) -> bytes: ...

    @property
    def root(self) -> RootKey | None: ...

    @property
    def blocks(self) -> np.ndarray: ...


def check_cache(
    index: RadixIndex,
    table: BlockTable,
    nodes: Mapping[int, NodeFacts],
    leases: Iterable[np.ndarray],  # i32[n] blocks of each
) -> None:
    """Raise IntegrityError unless each block is in one place, and everyone agrees which."""
    table.check_integrity()
    index.check_integrity()
    held = Counter(int(block) for blocks in leases for block in blocks)
    if {int(b): int(table.leases[b]) for b in np.flatnonzero(table.leases)} != dict(held):
        raise IntegrityError("the lease counts of the table are not those of the leases")
    if (table.page[list(held)] == NO_PAGE).any():
        raise IntegrityError("a leased block has no device slot")
    children, indexed = _check_nodes(index, table, nodes)
    if set(np.flatnonzero(table.head != NO_BLOCK).tolist()) != indexed:
        raise IntegrityError("the table counts blocks as indexed that are not, or misses some")
    if {b: int(table.num_children[b]) for b in indexed if table.num_children[b]} != children:
        raise IntegrityError("the table's counts of children are wrong")
    used = np.flatnonzero((table.page != NO_PAGE) | (table.host_state != HostState.NONE))
    leaked = set(used.tolist()) - indexed - set(held)
    if leaked:
        raise IntegrityError(f"blocks {leaked} are neither leased nor indexed nor free")


def nodes_below(index: RadixIndex, table: BlockTable) -> dict[int, list[int]]:
    """Of every node, named by its first block, the nodes below it."""
    below: dict[int, list[int]] = {}
    for _, parent, node in index.nodes():
        first = int(node.blocks[0])
        below.setdefault(first, [])
        if parent != NO_BLOCK:
            below.setdefault(int(table.head[parent]), []).append(first)
    return below


def _check_nodes(
    index: RadixIndex, table: BlockTable, nodes: Mapping[int, NodeFacts]
) -> tuple[dict[int, int], set[int]]:
    """Check each node; counts of children on the device by block, and the blocks there are."""
    children: Counter[int] = Counter()
    indexed: set[int] = set()
    heads: set[int] = set()
    for root, parent, node in index.nodes():
        blocks = node.blocks.tolist()
        first = blocks[0]
        heads.add(first)
        indexed.update(blocks)
        before = [parent, *blocks[:-1]]
        with_slot = (table.page[node.blocks] != NO_PAGE).tolist()
        children.update(b for b, counts in zip(before, with_slot, strict=True) if counts)
        if table.parent[node.blocks].tolist() != before:
            raise IntegrityError(f"the parents of blocks {blocks} are wrong")
        if (table.head[node.blocks] != first).any():
            raise IntegrityError(f"blocks {blocks} do not know the head of their node")
        facts = nodes.get(first)
        if facts is None or not np.array_equal(facts.blocks, node.blocks):
            raise IntegrityError(f"the facts of node {first} are not those of the index")
        if facts.key != node.tokens[: index.page_size].tobytes():
            raise IntegrityError(f"the path key of block {first} is wrong")
        if facts.root != (root if parent == NO_BLOCK else None):
            raise IntegrityError(f"the root of block {first} is wrong")
    if nodes.keys() != heads:
        raise IntegrityError("facts are kept of nodes that are no more")
    children.pop(NO_BLOCK, None)
    return dict(children), indexed
