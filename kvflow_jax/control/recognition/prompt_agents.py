"""Agents as nodes of the prefix tree of prompts: what the prompts of a role have in common.

    tools ─┬─ "You are the planner" ─┬─ user messages          agent: the whole system prompt
           └─ "You are the coder"   ─┴─ ...
    "You are a coding agent. Folder: " ─┬─ /a ── ...           agent: the part before the folders
                                        └─ /b ── ...

An agent is the end of the system prompt, tools included, if several runs have the same. If those
below one node of the tree keep differing from run to run, that node is the agent. Where the end of
the system prompt is unknown, as in plain completions, the agent is the longest prefix that prompts
keep sharing.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

MAX_NODES = 2048  # of one tenant; those used least recently are forgotten first
MAX_SEEN = 16_384  # block hashes in each of two generations
MAX_SEARCHED = 1024  # blocks of a prompt whose system prompt has no known end
NODE_BYTES, SEEN_BYTES = 450, 100  # estimated
# A node is an agent in place of the system prompts below it once it has so many of them, and less
# than half of them were used by more than one run.
_MIN_VARIANTS = 6
_MIN_SHARE = 0.1  # of a prefix's calls that must share a longer one, for that to be an agent
_SEVERAL = object()  # several runs


@dataclass(slots=True)
class _Node:
    """A prefix of prompts.

    Attributes:
        parent: key of the longest prefix that it had in common with another run when it was new.
        run: the first that has used it, or ``_SEVERAL``.
        num_variants: system prompts that end below it, and begin to differ there.
        num_recurring: those of them that several runs have used.
    """

    name: str
    parent: int | None
    run: object
    num_calls: int = 0
    num_variants: int = 0
    num_recurring: int = 0

    @property
    def has_varying_end(self) -> bool:
        """Whether the system prompts that begin with it end differently in each run."""
        return self.num_variants >= _MIN_VARIANTS and 2 * self.num_recurring < self.num_variants


class PromptAgents:
    """The agents of one tenant, as far as prompts show them.

    Args:
        page_size: tokens of a block.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._nodes: OrderedDict[int, _Node] = OrderedDict()
        # Block hash -> the run whose prompts have had it, or _SEVERAL; prompts add to the first.
        self._seen: dict[int, object] = {}
        self._seen_before: dict[int, object] = {}

    @property
    def num_bytes(self) -> int:
        """Estimate of its memory."""
        num_seen = len(self._seen) + len(self._seen_before)
        return NODE_BYTES * len(self._nodes) + SEEN_BYTES * num_seen

    def find(
        self, tokens: np.ndarray, hashes: np.ndarray, num_system: int | None, run: object
    ) -> str | None:
        """Return the name of the agent that a prompt is of; None while there is no way to know.

        Args:
            tokens: i32[n], the prompt.
            hashes: i64[n // page_size], its block hashes.
            num_system: tokens of its system prompt, tools included; None: unknown.
            run: whose prompt it is; prompts of one run may share more than their roles.
        """
        if num_system is None:
            return self._find_by_sharing(tokens, hashes[:MAX_SEARCHED].tolist(), run)
        if not num_system:
            return None
        path = hashes[: num_system // self._page_size].tolist()
        num_shared = self._note(path, run)
        text = tokens[:num_system].tobytes()
        key = hash((path[-1] if path else None, text))
        node = self._use(key)
        if node is None:
            parent = path[num_shared - 1] if num_shared else None
            node = self._nodes[key] = _Node(_name(text), parent, run)
            if parent is not None:
                above = self._use(parent)
                if above is None:
                    end = num_shared * self._page_size
                    above = self._nodes[parent] = _Node(_name(tokens[:end].tobytes()), None, run)
                above.num_variants += 1
            self._trim()
        above = None if node.parent is None else self._use(node.parent)
        if node.run is not run and node.run is not _SEVERAL:
            node.run = _SEVERAL
            if above is not None:
                above.num_recurring += 1
        node.num_calls += 1
        return above.name if above is not None and above.has_varying_end else node.name

    def _find_by_sharing(self, tokens: np.ndarray, path: list[int], run: object) -> str | None:
        """Return the agent of a prompt without a known system prompt."""
        num_repeated = bisect_left(path, True, key=lambda key: self._run_of(key) is None)
        num_shared = self._note(path, run)
        known = next((key for key in reversed(path[:num_shared]) if key in self._nodes), None)
        node = None if known is None else self._use(known)
        if node is None and not num_shared:
            # Prompts of one run share more than their roles, so only the first two count.
            known = next((key for key in path[:num_repeated] if key in self._nodes), None)
            node = None if known is None else self._use(known)
            num_shared = num_repeated
        if num_shared and (known is None or known != path[num_shared - 1]):
            key, end = path[num_shared - 1], num_shared * self._page_size
            longer = _Node(_name(tokens[:end].tobytes()), known, None)
            # It was seen before, in a prompt that shared less.
            if node is None or _MIN_SHARE * node.num_calls <= 1:
                node = self._nodes[key] = longer
                self._trim()
        if node is None:
            return None
        node.num_calls += 1
        return node.name

    def _note(self, path: list[int], run: object) -> int:
        """Record the blocks of a prompt; return how many first ones another run's prompt has."""
        # What has the end of a prefix has all of it, so three searches by halves do.
        num_shared = bisect_left(path, True, key=lambda key: self._run_of(key) in (None, run))
        num_known = bisect_left(path, True, hi=num_shared, key=lambda key: not self._is_known(key))
        if len(self._seen) + len(path) > MAX_SEEN:
            self._seen, self._seen_before, num_known = {}, self._seen, 0
        self._seen.update(dict.fromkeys(path[num_known:num_shared], _SEVERAL))
        num_own = bisect_left(
            path, True, lo=num_shared, key=lambda key: self._seen.get(key) is not run
        )
        self._seen.update(dict.fromkeys(path[num_own:], run))
        return num_shared

    def _is_known(self, key: int) -> bool:
        """Return whether it is known already that several runs have a block."""
        return self._seen.get(key) is _SEVERAL

    def _run_of(self, key: int) -> object:
        run = self._seen.get(key)
        return self._seen_before.get(key) if run is None else run

    def _use(self, key: int) -> _Node | None:
        node = self._nodes.get(key)
        if node is not None:
            self._nodes.move_to_end(key)
        return node

    def _trim(self) -> None:
        while len(self._nodes) > MAX_NODES:
            self._nodes.popitem(last=False)


def _name(text: bytes) -> str:
    """Return the name of the agent of a prefix; the same in each process."""
    return f"prefix-{hashlib.blake2b(text, digest_size=6).hexdigest()}"
