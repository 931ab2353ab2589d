"""A bounded index over finished answers: where the last tokens of a sequence occurred before.

    tokens   | answer a .. | -1 | answer b ...... | -1 | free or oldest answers ..
                                                        ^ next: a new answer goes here
    heads[bucket of an n-gram] -> its newest slot; previous[slot] -> the slot before that one

It is the match finder of LZ77 over a ring buffer: hash chains of two lengths of n-grams.
SuffixDecoding (arXiv 2411.04975) keeps suffix trees; in Python an insertion into one would take as
long as a step. All memory is allocated at the start. An insertion costs a few numpy calls, and the
cost of a lookup is bounded, however much the index holds.

The oldest answers are overwritten. As an answer that repeats an older one is inserted anew, this
drops what was used least recently. Nothing removes links to overwritten slots: each lookup compares
tokens and owner, so a stale link costs a comparison and never gives a wrong match.
"""

from __future__ import annotations

import hashlib

import numpy as np

from kvflow_jax.speculation.matches import (
    LONG_MATCH_LEN,
    MAX_MATCHES,
    MIN_MATCH_LEN,
    NO_MATCHES,
    Matches,
    common_lengths,
)

BYTES_PER_TOKEN = 28  # of an index whose size is a power of two
_END = -1  # behind each answer
_FACTOR = 0x9E3779B97F4A7C15  # Fibonacci hashing (Knuth, TAOCP 3, 6.4)
_U64 = (1 << 64) - 1


def owner_of(*names: str) -> int:
    """Return a number for those who share answers, i64, from names of tenant, salt and so on."""
    text = "\0".join(names)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class SuffixIndex:
    """Finished answers of all owners. An owner's lookups find its own answers only.

    Args:
        num_tokens: capacity, rounded up to a power of two.
    """

    def __init__(self, num_tokens: int) -> None:
        self._bits = max(1, (num_tokens - 1).bit_length())
        size = 1 << self._bits
        self._mask = size - 1
        self._next = 0
        # Zeros take no memory until they are written.
        self._tokens = np.zeros(size, np.int32)
        self._owners = np.zeros(size, np.int64)
        self._chains = {n: _Chains(size) for n in (LONG_MATCH_LEN, MIN_MATCH_LEN)}

    @property
    def num_bytes(self) -> int:
        """Bytes that the index takes once it is full."""
        chains = sum(c.heads.nbytes + c.previous.nbytes for c in self._chains.values())
        return self._tokens.nbytes + self._owners.nbytes + chains

    def insert(self, owner: int, tokens: np.ndarray) -> None:
        """Add an answer, i32[n]. Of one that is longer than half the index, its end."""
        tokens = tokens[-(len(self._tokens) // 2) :]
        num = len(tokens)
        slots = (self._next + np.arange(num + 1)) & self._mask
        self._next = (self._next + num + 1) & self._mask
        self._tokens[slots[:num]] = tokens
        self._tokens[slots[num]] = _END
        self._owners[slots] = owner
        for length, chains in self._chains.items():
            # Behind the last token nothing follows.
            if num > length:
                chains.add(self._buckets(owner, tokens[:-1], length), slots[length - 1 : num - 1])

    def find(self, owner: int, tokens: np.ndarray, max_len: int, num_next: int) -> Matches:
        """Return the newest occurrences of the end of ``tokens`` (i32[n]) in the owner's answers.

        Args:
            max_len, num_next: as in ``find_in_context``.
        """
        suffix = tokens[: -max_len - 1 : -1]
        last = tokens[-LONG_MATCH_LEN:].tolist()
        for length, chains in self._chains.items():
            if len(suffix) < length:
                continue
            slots = chains.walk(self._bucket(owner, last[-length:]))
            if not slots:
                continue
            ends = np.array(slots)
            before = (ends[:, None] - np.arange(len(suffix))) & self._mask
            lengths = common_lengths(self._tokens[before] == suffix)
            is_match = (lengths >= length) & (self._owners[ends] == owner)
            if is_match.any():
                ends, lengths = ends[is_match], lengths[is_match]
                return self._matches(ends, lengths, num_next)
        return NO_MATCHES

    def _matches(self, ends: np.ndarray, lengths: np.ndarray, num_next: int) -> Matches:
        """Return what follows the slots ``ends`` (i64[n]); a stale link may lead to an end."""
        following = self._tokens[(ends[:, None] + np.arange(1, num_next + 1)) & self._mask]
        has_ended = np.maximum.accumulate(following == _END, axis=1)
        goes_on = ~has_ended[:, 0]
        following = np.where(has_ended, _END, following)
        return Matches(lengths[goes_on].tolist(), following[goes_on])

    def _buckets(self, owner: int, tokens: np.ndarray, length: int) -> np.ndarray:
        """Return the bucket of each n-gram of ``tokens``, i64[len(tokens) - length + 1]."""
        num = len(tokens) - length + 1
        keys = np.full(num, owner & _U64, np.uint64)
        for i in range(length):
            keys = (keys ^ tokens[i : i + num].astype(np.uint64)) * np.uint64(_FACTOR)
        return (keys >> np.uint64(64 - self._bits)).astype(np.int64)

    def _bucket(self, owner: int, ngram: list[int]) -> int:
        key = owner & _U64
        for token in ngram:
            key = (key ^ token) * _FACTOR & _U64
        return key >> 64 - self._bits


class _Chains:
    """For each bucket, the slots where an n-gram of it ends, newest first, as linked lists."""

    def __init__(self, size: int) -> None:
        self.heads = np.zeros(size, np.int32)  # slot + 1; 0: none
        self.previous = np.zeros(size, np.int32)

    def add(self, buckets: np.ndarray, slots: np.ndarray) -> None:
        """Add slots (i64[n]), oldest first, each to its bucket (i64[n])."""
        order = np.argsort(buckets, kind="stable")
        buckets, slots = buckets[order], slots[order]
        is_first = np.r_[True, buckets[1:] != buckets[:-1]]
        is_last = np.r_[is_first[1:], True]
        before = np.r_[0, slots[:-1] + 1]
        self.previous[slots] = np.where(is_first, self.heads[buckets], before)
        self.heads[buckets[is_last]] = slots[is_last] + 1

    def walk(self, bucket: int) -> list[int]:
        """Return the newest slots of a bucket, at most ``MAX_MATCHES``."""
        slots: list[int] = []
        link = int(self.heads[bucket])
        while link and len(slots) < MAX_MATCHES:
            # Where an overwritten slot has a link of its new n-gram, the chain may come back.
            if link - 1 in slots:
                break
            slots.append(link - 1)
            link = int(self.previous[link - 1])
        return slots
