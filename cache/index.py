"""The radix index: token sequences -> block ids. Immutable: every change returns a new index.

An edge carries a *node*, a run of blocks; children are keyed by the bytes of their whole first
page, so a look-up never compares less than a page. The index knows nothing of where a block lives,
who leases it or when it was used: those facts stand in the block table, by block id, so that using
or moving a block rewrites no node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvflow_jax.cache.persistent_map import EMPTY, PersistentMap
from kvflow_jax.errors import IntegrityError

# A leaf grows in place up to this length; past it a new child starts, so that a long generation
# does not copy an ever longer run for each block it adds.
MAX_GROWN_BLOCKS = 64

NO_BLOCKS = np.empty(0, np.int32)
NO_BLOCKS.flags.writeable = False


class RootKey(NamedTuple):
    """What separates sequences that must never share blocks, however alike their tokens."""

    model: str
    salt: str = ""


class Node:
    """A run of blocks on one edge."""

    __slots__ = ("blocks", "children", "tokens")

    def __init__(
        self,
        tokens: np.ndarray,  # i32[num_blocks * page_size]
        blocks: np.ndarray,  # i32[num_blocks]
        children: PersistentMap[bytes, Node],
    ) -> None:
        self.tokens = tokens
        self.blocks = blocks
        self.children = children


@dataclass(frozen=True, slots=True)
class Insertion:
    """What an insert did.

    Args:
        index: the new index.
        existing: i32[n], the blocks that already stood for the first n pages; they stay.
        split: the lower half of a node that had to be split, now a node of its own; or None.
        is_grown: whether the new blocks continue the node of the block before them.
    """

    index: RadixIndex
    existing: np.ndarray
    split: Node | None
    is_grown: bool


class RadixIndex:
    """Immutable map from (root, token prefix) to block ids, in whole pages."""

    __slots__ = ("_roots", "page_size")

    def __init__(
        self, page_size: int, roots: PersistentMap[RootKey, PersistentMap[bytes, Node]] = EMPTY
    ) -> None:
        self.page_size = page_size
        self._roots = roots

    def match(self, root: RootKey, tokens: np.ndarray) -> np.ndarray:
        """Blocks of the longest indexed prefix of ``tokens`` (i32[num_tokens]), whole pages only.

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
            children, start = node.children, start + len(node.tokens)
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
        """Index ``blocks`` under ``tokens``. Pages that are indexed already keep their blocks.

        Args:
            may_grow: whether new blocks may continue the node of the block before them; else they
                become a node of their own.

        Raises:
            ValueError: tokens and blocks do not fit together.
        """
        if len(tokens) != len(blocks) * self.page_size:
            raise ValueError(
                f"{len(blocks)} blocks need {len(blocks) * self.page_size} tokens, "
                f"got {len(tokens)}"
            )
        page = self.page_size
        existing: list[np.ndarray] = []
        trail: list[tuple[PersistentMap[bytes, Node], bytes, Node]] = []
        split, is_grown = None, False
        children, start = self._roots.get(root) or EMPTY, 0
        while start < len(blocks):
            key = _page_key(tokens, start * page, page)
            node = children.get(key)
            if node is None:
                rest = Node(tokens[start * page :].copy(), blocks[start:].copy(), EMPTY)
                children = children.set(key, rest)
                break
            num_equal = _num_equal_pages(node, tokens, start * page, page)
            existing.append(node.blocks[:num_equal])
            start += num_equal
            if start == len(blocks):
                return Insertion(self, np.concatenate(existing), split=None, is_grown=False)
            if num_equal < len(node.blocks):
                node, split = _split(node, num_equal, page)
            elif (
                may_grow
                and not len(node.children)
                and num_equal + len(blocks) - start <= MAX_GROWN_BLOCKS
            ):
                is_grown = True
                longer = Node(
                    np.concatenate([node.tokens, tokens[start * page :]]),
                    np.concatenate([node.blocks, blocks[start:]]),
                    EMPTY,
                )
                children = children.set(key, longer)
                break
            trail.append((children, key, node))
            children = node.children
        return Insertion(
            index=RadixIndex(page, self._roots.set(root, _rebuild(trail, children))),
            existing=np.concatenate(existing) if existing else NO_BLOCKS,
            split=split,
            is_grown=is_grown,
        )

    def split(
        self, root: RootKey, path: Sequence[bytes], num_blocks: int
    ) -> tuple[RadixIndex, Node]:
        """Cut the node that ``path`` (first-page keys) leads to after its first ``num_blocks``.

        Returns:
            The new index, and the lower half, now a node of its own.

        Raises:
            IntegrityError: the path leads nowhere, or the node is not longer than that.
        """
        trail = self._trail(root, path)
        children, key, node = trail.pop()
        if not 0 < num_blocks < len(node.blocks):
            raise IntegrityError(f"cannot cut a node of {len(node.blocks)} after {num_blocks}")
        upper, lower = _split(node, num_blocks, self.page_size)
        top = _rebuild(trail, children.set(key, upper))
        return RadixIndex(self.page_size, self._roots.set(root, top)), lower

    def prune(
        self, root: RootKey, path: Sequence[bytes], lengths: Mapping[bytes, int]
    ) -> RadixIndex:
        """Drop tails of leaves below the node that ``path`` (first-page keys) leads to.

        Args:
            lengths: by the first-page key of each leaf, how many of its blocks stay; with none
                the leaf goes.

        Raises:
            IntegrityError: a path leads nowhere, or to a node with children, or past its end.
        """
        trail = self._trail(root, path)
        children = trail[-1][2].children if trail else self._roots.get(root) or EMPTY
        try:
            children, leaves = children.take(lengths)
        except KeyError:
            raise IntegrityError("a path leaves the index") from None
        for (key, length), leaf in zip(lengths.items(), leaves, strict=True):
            if leaf.children is not EMPTY or length >= len(leaf.blocks):
                raise IntegrityError(f"cannot cut a node after {length} blocks: others continue it")
            if length:
                tokens = leaf.tokens[: length * self.page_size]
                children = children.set(key, Node(tokens, leaf.blocks[:length], EMPTY))
        top = _rebuild(trail, children)
        roots = self._roots.set(root, top) if len(top) else self._roots.delete(root)
        return RadixIndex(self.page_size, roots)

    def _trail(
        self, root: RootKey, path: Sequence[bytes]
    ) -> list[tuple[PersistentMap[bytes, Node], bytes, Node]]:
        """Each node on a path, with the map and key it stands under."""
        trail = []
        children = self._roots.get(root) or EMPTY
        for key in path:
            node = children.get(key)
            if node is None:
                raise IntegrityError("a path leaves the index")
            trail.append((children, key, node))
            children = node.children
        return trail

    def nodes(self) -> Iterator[tuple[RootKey, int, Node]]:
        """Every node with its root and its parent's last block (-1 at the top). For checks."""
        stack = [(root, -1, node) for root, top in self._roots.items() for node in top.values()]
        while stack:
            root, parent, node = stack.pop()
            yield root, parent, node
            stack.extend((root, int(node.blocks[-1]), child) for child in node.children.values())

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the index is well formed and holds each block once."""
        seen: set[int] = set()
        for root, _, node in self.nodes():
            blocks = node.blocks.tolist()
            if not blocks or len(node.tokens) != len(blocks) * self.page_size:
                raise IntegrityError(f"a node under {root} has tokens and blocks that do not fit")
            for key, child in node.children.items():
                if key != _page_key(child.tokens, 0, self.page_size):
                    raise IntegrityError(f"a child of block {blocks[-1]} stands under a wrong key")
            if seen.intersection(blocks) or len(set(blocks)) != len(blocks):
                raise IntegrityError(f"a block of {blocks} is indexed twice")
            seen.update(blocks)


def _rebuild(
    trail: list[tuple[PersistentMap[bytes, Node], bytes, Node]],
    children: PersistentMap[bytes, Node],
) -> PersistentMap[bytes, Node]:
    """Copy the path above changed ``children``, bottom up; the new top map."""
    for above, key, node in reversed(trail):
        children = above.set(key, Node(node.tokens, node.blocks, children))
    return children


def _split(node: Node, num_blocks: int, page_size: int) -> tuple[Node, Node]:
    """The first ``num_blocks`` of ``node`` over a child that holds the rest, and that child."""
    cut = num_blocks * page_size
    rest = Node(node.tokens[cut:], node.blocks[num_blocks:], node.children)
    below: PersistentMap[bytes, Node] = EMPTY.set(_page_key(rest.tokens, 0, page_size), rest)
    return Node(node.tokens[:cut], node.blocks[:num_blocks], below), rest


def _page_key(tokens: np.ndarray, start: int, page_size: int) -> bytes:
    return tokens[start : start + page_size].tobytes()


def _num_equal_pages(node: Node, tokens: np.ndarray, start: int, page_size: int) -> int:
    length = min(len(node.tokens), len(tokens) - start)
    differs = node.tokens[:length] != tokens[start : start + length]
    first = int(differs.argmax()) if length else 0
    equal = first if length and differs[first] else length
    return equal // page_size
