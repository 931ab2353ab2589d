"""Invariants across the index, the block table and the leases. For tests and for debugging."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, NO_PAGE, BlockTable, HostState
from kvflow_jax.cache.index import RadixIndex
from kvflow_jax.cache.node_index import NodeRecord
from kvflow_jax.errors import IntegrityError


def check_cache(
    index: RadixIndex,
    table: BlockTable,
    nodes: Mapping[int, NodeRecord],
    leases: Iterable[np.ndarray],  # i32[n] blocks of each
) -> None:
    """Raise IntegrityError unless index, table, node records and leases agree on every block."""
    table.check_integrity()
    index.check_integrity()
    leased = Counter(int(block) for blocks in leases for block in blocks)
    if {int(b): int(table.leases[b]) for b in np.flatnonzero(table.leases)} != dict(leased):
        raise IntegrityError("the lease counts of the table are not those of the leases")
    if (table.page[list(leased)] == NO_PAGE).any():
        raise IntegrityError("a leased block has no page")
    children, indexed = _check_nodes(index, table, nodes)
    if set(np.flatnonzero(table.head != NO_BLOCK).tolist()) != indexed:
        raise IntegrityError("the blocks indexed by the table are not those of the index")
    if {b: int(table.num_children[b]) for b in indexed if table.num_children[b]} != children:
        raise IntegrityError("the child counts of the table are wrong")
    used = np.flatnonzero((table.page != NO_PAGE) | (table.host_state != HostState.NONE))
    leaked = set(used.tolist()) - indexed - set(leased)
    if leaked:
        raise IntegrityError(f"blocks {leaked} are neither leased nor indexed nor free")


def child_nodes(index: RadixIndex, table: BlockTable) -> dict[int, list[int]]:
    """Return the children of every node; nodes are identified by their first block."""
    children: dict[int, list[int]] = {}
    for _, parent, node in index.nodes():
        first = int(node.blocks[0])
        children.setdefault(first, [])
        if parent != NO_BLOCK:
            children.setdefault(int(table.head[parent]), []).append(first)
    return children


def _check_nodes(
    index: RadixIndex, table: BlockTable, nodes: Mapping[int, NodeRecord]
) -> tuple[dict[int, int], set[int]]:
    """Check each node; return the counts of children on the device, and all indexed blocks."""
    children: Counter[int] = Counter()
    indexed: set[int] = set()
    heads: set[int] = set()
    for root, parent, node in index.nodes():
        blocks = node.blocks.tolist()
        first = blocks[0]
        heads.add(first)
        indexed.update(blocks)
        parents = [parent, *blocks[:-1]]
        has_page = (table.page[node.blocks] != NO_PAGE).tolist()
        children.update(b for b, counts in zip(parents, has_page, strict=True) if counts)
        if table.parent[node.blocks].tolist() != parents:
            raise IntegrityError(f"the parents of blocks {blocks} are wrong")
        if (table.head[node.blocks] != first).any():
            raise IntegrityError(f"the head of blocks {blocks} is wrong")
        record = nodes.get(first)
        if record is None or not np.array_equal(record.blocks, node.blocks):
            raise IntegrityError(f"the record of node {first} does not have its blocks")
        if record.key != node.key:
            raise IntegrityError(f"the path key of node {first} is wrong")
        if record.root != (root if parent == NO_BLOCK else None):
            raise IntegrityError(f"the root of node {first} is wrong")
    if nodes.keys() != heads:
        raise IntegrityError("there are records of nodes that have left the index")
    children.pop(NO_BLOCK, None)
    return dict(children), indexed
