"""Radix index: token sequences -> block ids. Immutable: every change returns a new index.

An edge carries a *node*, a run of blocks. Children are keyed by the bytes of their whole first
page, so a lookup compares whole pages only. Location, leases and last use of a block are not part
of the index: the block table keeps them by block id, so using or moving a block rewrites no node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvflow_jax.cache.persistent_map import EMPTY, PersistentMap
from kvflow_jax.errors import IntegrityError

# Blocks up to which a leaf is extended; beyond it a child is added, so that a long generation does
# not copy an ever longer run for each block it appends.
MAX_GROWN_BLOCKS = 64

NO_BLOCKS = np.empty(0, np.int32)
NO_BLOCKS.flags.writeable = False
NO_TOKENS = NO_BLOCKS
_TOKEN_BYTES = 4


class RootKey(NamedTuple):
    """Namespace of the index: sequences under different keys never share blocks.

    Attributes:
        tenant: whose room in the cache the blocks take (``TenantRooms``).
    """

    model: str
    salt: str = ""
    tenant: str = ""


class Node:
    """Run of blocks on one edge."""

    __slots__ = ("blocks", "children", "key", "tokens")

    def __init__(
        self,
        key: bytes,  # of the first page
        tokens: np.ndarray,  # i32[(num_blocks - 1) * page_size], behind the first page
        blocks: np.ndarray,  # i32[num_blocks]
        children: PersistentMap[bytes, Node],
    ) -> None:
        self.key = key
        self.tokens = tokens
        self.blocks = blocks
        self.children = children


@dataclass(frozen=True, slots=True)
class Insertion:
    """Result of ``RadixIndex.insert``.

    Attributes:
        index: the new index.
        existing: i32[n], the blocks already indexed for the first n pages; they are kept.
        node: the node that ends with the new blocks; None if all pages were indexed.
        split: the lower half of a node that was split, now a node of its own; else None.
        is_grown: whether the new blocks extend the node of the block before them.
    """

    index: RadixIndex
    existing: np.ndarray
    node: Node | None = None
    split: Node | None = None
    is_grown: bool = False


class RadixIndex:
    """Immutable map from (root, token prefix) to block ids, in whole pages."""

    __slots__ = ("_roots", "page_size")

    def __init__(
        self, page_size: int, roots: PersistentMap[RootKey, PersistentMap[bytes, Node]] = EMPTY
    ) -> None:
        self.page_size = page_size
        self._roots = roots

    def match(self, root: RootKey, tokens: np.ndarray) -> np.ndarray:
        """Return the blocks of the longest indexed prefix of ``tokens``, whole pages only.

        Args:
            tokens: i32[num_tokens].

        Returns:
            i32[num_blocks].
        """
        runs = []
        children, start = self._roots.get(root), 0
        while children is not None:
            node = children.get(_page_key(tokens, start, self.page_size))
            if node is None:
                break
            num_equal = _num_equal_pages(node, tokens, start, self.page_size)
            runs.append(node.blocks[:num_equal])
            if num_equal < len(node.blocks):
                break
            children, start = node.children, start + num_equal * self.page_size
        if not runs:
            return NO_BLOCKS
        return runs[0] if len(runs) == 1 else np.concatenate(runs)

    def insert(
        self,
        root: RootKey,
        tokens: np.ndarray,  # i32[num_blocks * page_size]
        blocks: np.ndarray,  # i32[num_blocks]
        *,
        may_grow: bool = True,
    ) -> Insertion:
        """Index ``blocks`` under ``tokens``. Pages that are already indexed keep their blocks.

        Args:
            may_grow: whether new blocks may extend the node of the block before them; if not, they
                become a node of their own.

        Raises:
            ValueError: the number of tokens is not that of the blocks times page_size.
        """
        if len(tokens) != len(blocks) * self.page_size:
            raise ValueError(
                f"{len(blocks)} blocks need {len(blocks) * self.page_size} tokens, "
                f"got {len(tokens)}"
            )
        page_size = self.page_size
        existing: list[np.ndarray] = []
        trail: list[tuple[PersistentMap[bytes, Node], bytes, Node]] = []
        split, is_grown = None, False
        children, start = self._roots.get(root) or EMPTY, 0
        while start < len(blocks):
            key = _page_key(tokens, start * page_size, page_size)
            node = children.get(key)
            if node is None:
                rest = tokens[(start + 1) * page_size :]
                node = Node(
                    key, rest.copy() if len(rest) else NO_TOKENS, blocks[start:].copy(), EMPTY
                )
                children = children.set(key, node)
                break
            num_equal = _num_equal_pages(node, tokens, start * page_size, page_size)
            existing.append(node.blocks[:num_equal])
            start += num_equal
            if start == len(blocks):
                return Insertion(self, np.concatenate(existing))
            if num_equal < len(node.blocks):
                node, split = _split(node, num_equal, page_size)
            elif (
                may_grow
                and not len(node.children)
                and num_equal + len(blocks) - start <= MAX_GROWN_BLOCKS
            ):
                is_grown = True
                node = Node(
                    key,
                    np.concatenate([node.tokens, tokens[start * page_size :]]),
                    np.concatenate([node.blocks, blocks[start:]]),
                    EMPTY,
                )
                children = children.set(key, node)
                break
            trail.append((children, key, node))
            children = node.children
        return Insertion(
            index=RadixIndex(page_size, self._roots.set(root, _rebuild(trail, children))),
            existing=np.concatenate(existing) if existing else NO_BLOCKS,
            node=node,
            split=split,
            is_grown=is_grown,
        )

    def split(
        self, root: RootKey, path: Sequence[bytes], num_blocks: int
    ) -> tuple[RadixIndex, Node]:
        """Split the node at ``path`` (first-page keys) after its first ``num_blocks`` blocks.

        Returns:
            The new index, and the lower half, now a node of its own.

        Raises:
            IntegrityError: no node has this path, or the node has no more than ``num_blocks``.
        """
        trail = self._trail(root, path)
        children, key, node = trail.pop()
        if not 0 < num_blocks < len(node.blocks):
            raise IntegrityError(
                f"cannot split a node of {len(node.blocks)} blocks after {num_blocks}"
            )
        upper, lower = _split(node, num_blocks, self.page_size)
        top = _rebuild(trail, children.set(key, upper))
        return RadixIndex(self.page_size, self._roots.set(root, top)), lower

    def prune(
        self, root: RootKey, path: Sequence[bytes], lengths: Mapping[bytes, int]
    ) -> RadixIndex:
        """Truncate or remove leaves below the node at ``path`` (first-page keys).

        Args:
            lengths: number of blocks to keep, by the first-page key of each leaf; 0 removes it.

        Raises:
            IntegrityError: no node has a path, the node has children, or it is not longer than the
                length to keep.
        """
        trail = self._trail(root, path)
        children = trail[-1][2].children if trail else self._roots.get(root) or EMPTY
        try:
            children, leaves = children.pop_many(lengths)
        except KeyError:
            raise IntegrityError("no node of the index has this path") from None
        for (key, length), leaf in zip(lengths.items(), leaves, strict=True):
            if leaf.children is not EMPTY or length >= len(leaf.blocks):
                raise IntegrityError(
                    f"cannot truncate a node of {len(leaf.blocks)} blocks and "
                    f"{len(leaf.children)} children to {length} blocks"
                )
            if length:
                tokens = leaf.tokens[: (length - 1) * self.page_size]
                children = children.set(key, Node(key, tokens, leaf.blocks[:length], EMPTY))
        top = _rebuild(trail, children)
        roots = self._roots.set(root, top) if len(top) else self._roots.delete(root)
        return RadixIndex(self.page_size, roots)

    def _trail(
        self, root: RootKey, path: Sequence[bytes]
    ) -> list[tuple[PersistentMap[bytes, Node], bytes, Node]]:
        """Return each node on a path, with the map that contains it and its key."""
        trail = []
        children = self._roots.get(root) or EMPTY
        for key in path:
            node = children.get(key)
            if node is None:
                raise IntegrityError("no node of the index has this path")
            trail.append((children, key, node))
            children = node.children
        return trail

    def nodes(self) -> Iterator[tuple[RootKey, int, Node]]:
        """Yield each node with its root and its parent's last block (-1 at the top). For checks."""
        stack = [(root, -1, node) for root, top in self._roots.items() for node in top.values()]
        while stack:
            root, parent, node = stack.pop()
            yield root, parent, node
            stack.extend((root, int(node.blocks[-1]), child) for child in node.children.values())

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the index is well formed and has each block at most once."""
        seen: set[int] = set()
        for root, _, node in self.nodes():
            blocks = node.blocks.tolist()
            if len(node.key) + node.tokens.nbytes != len(blocks) * self.page_size * _TOKEN_BYTES:
                raise IntegrityError(f"tokens and blocks of a node under {root} do not match")
            for key, child in node.children.items():
                if key != child.key:
                    raise IntegrityError(f"a child of block {blocks[-1]} has a wrong key")
            if seen.intersection(blocks) or len(set(blocks)) != len(blocks):
                raise IntegrityError(f"one of the blocks {blocks} is indexed twice")
            seen.update(blocks)


def _rebuild(
    trail: list[tuple[PersistentMap[bytes, Node], bytes, Node]],
    children: PersistentMap[bytes, Node],
) -> PersistentMap[bytes, Node]:
    """Copy the path above changed ``children``, bottom up, and return the new top map."""
    for siblings, key, node in reversed(trail):
        children = siblings.set(key, Node(key, node.tokens, node.blocks, children))
    return children


def _split(node: Node, num_blocks: int, page_size: int) -> tuple[Node, Node]:
    """Return the first ``num_blocks`` of ``node`` above a child with the rest, and that child."""
    cut = (num_blocks - 1) * page_size
    key, tokens = _page_key(node.tokens, cut, page_size), node.tokens[cut + page_size :]
    lower = Node(key, tokens, node.blocks[num_blocks:], node.children)
    children: PersistentMap[bytes, Node] = EMPTY.set(key, lower)
    return Node(node.key, node.tokens[:cut], node.blocks[:num_blocks], children), lower


def _page_key(tokens: np.ndarray, start: int, page_size: int) -> bytes:
    return tokens[start : start + page_size].tobytes()


def _num_equal_pages(node: Node, tokens: np.ndarray, start: int, page_size: int) -> int:
    """Return how many pages of a node ``tokens[start:]`` begins with, the first one included."""
    others = tokens[start + page_size : start + page_size + len(node.tokens)]
    differs = node.tokens[: len(others)] != others
    num_equal = int(differs.argmax()) if differs.any() else len(others)
    return 1 + num_equal // page_size
