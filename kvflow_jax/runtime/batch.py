"""A step's input: chunks of requests as padded numpy arrays of a few compiled shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic

import jax
import numpy as np

from kvflow_jax.requests.param import Integer, Number
from kvflow_jax.requests.request import Chunk
from kvflow_jax.requests.sampling_params import PARAMS, SamplingParams
from kvflow_jax.runtime.sampler import Array, SamplingRows

# The sampling parameters that the sampler reads, in the order of their columns.
INT_PARAMS = tuple(
    name for name, param in PARAMS.items() if isinstance(param, Integer) and param.is_column
)
FLOAT_PARAMS = tuple(
    name for name, param in PARAMS.items() if isinstance(param, Number) and param.is_column
)

# A budget of more tiles is an accelerator's.
_MAX_CPU_TILES = 4


@dataclass(frozen=True, slots=True)
class BatchShape:
    """A compiled shape: ``num_decode`` rows of one token, then ``num_tiles`` rows of ``tile``.

    A tile is ``tile`` consecutive query tokens of one prompt; a longer chunk fills several tiles.
    """

    num_tiles: int
    num_decode: int
    tile: int

    @property
    def num_rows(self) -> int:
        return self.num_decode + self.num_tiles

    @property
    def num_tokens(self) -> int:
        return self.num_decode + self.num_tiles * self.tile

    def fits(self, num_decode: int, lengths: Sequence[int]) -> bool:
        """True if ``num_decode`` decode rows and prefill chunks of ``lengths`` tokens fit."""
        num_tiles = sum(-(-length // self.tile) for length in lengths)
        return num_decode <= self.num_decode and num_tiles <= self.num_tiles


class _Int:
    """Columns of ``Batch.ints``; the page table follows the named ones."""

    START = 0  # position of the first query token
    LEN = 1  # number of query tokens; 0: padding
    SOURCE = 2  # decode rows: seq_slot whose last sample is the token; -1: it is in ``tokens``
    SEQ_SLOT = 3  # where the sample is kept; out of range: the sample is dropped
    MASK_SLOT = 4  # where the token mask is
    BANS_STOPS = 5
    NEEDS_SAMPLER_STATE = 6  # from here on a request's constants
    WANTS_LOGPROBS = 7
    SEED = 8  # two columns, the bits of u32[2]
    HAS_GRAMMAR = 10
    PARAMS = 11  # INT_PARAMS
    PAGES = PARAMS + len(INT_PARAMS)


_QUERY = slice(_Int.START, _Int.SOURCE)
_SAMPLE = slice(_Int.SEQ_SLOT, _Int.NEEDS_SAMPLER_STATE)
_CONSTANTS = slice(_Int.NEEDS_SAMPLER_STATE, _Int.PAGES)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch(Generic[Array]):
    """One step's input. Rows with ``query_len`` 0 are padding.

    Its arrays are numpy on the host and traced within the step; the properties work on both. Fields
    are packed into three arrays, because dispatch costs more for each array than for its content.
    """

    shape: BatchShape = field(metadata={"static": True})
    tokens: Array  # i32[num_tokens], in row order
    ints: Array  # i32[num_rows, _Int.PAGES + pages_per_seq]
    floats: Array  # f32[num_rows, len(FLOAT_PARAMS)]

    @staticmethod
    def empty(shape: BatchShape, pages_per_seq: int, num_seq_slots: int) -> Batch[np.ndarray]:
        """Return a batch of padding: warm-up runs it, ``BatchShapes.build`` fills it."""
        ints = np.zeros((shape.num_rows, _Int.PAGES + pages_per_seq), np.int32)
        ints[:, _Int.SOURCE] = -1
        ints[:, _Int.SEQ_SLOT] = num_seq_slots
        floats = np.empty((shape.num_rows, len(FLOAT_PARAMS)), np.float32)
        ints[:, _CONSTANTS], floats[:] = _PADDING
        return Batch(shape, np.zeros(shape.num_tokens, np.int32), ints, floats)

    @property
    def page_table(self) -> Array:
        """Pages of each row's sequence, i32[num_rows, pages_per_seq], padded with the null page."""
        return self.ints[:, _Int.PAGES :]

    @property
    def query_start(self) -> Array:
        """Position of each row's first query token, i32[num_rows]."""
        return self.ints[:, _Int.START]

    @property
    def query_len(self) -> Array:
        """Number of query tokens of each row, i32[num_rows]; 0: padding."""
        return self.ints[:, _Int.LEN]

    @property
    def token_source(self) -> Array:
        """seq_slot whose last sample is the row's token, i32[num_decode]; -1: see ``tokens``."""
        return self.ints[: self.shape.num_decode, _Int.SOURCE]

    @property
    def wants_logprobs(self) -> bool:
        """True if any row wants logprobs; on the host only."""
        return bool(self.ints[:, _Int.WANTS_LOGPROBS].any())

    @property
    def sampling(self) -> SamplingRows[Array]:
        """Sampling settings of all rows; samples count only where a sampling chunk ends."""
        ints, floats = self.ints, self.floats
        seed = ints[:, _Int.SEED : _Int.SEED + 2]
        columns = {name: ints[:, _Int.PARAMS + i] for i, name in enumerate(INT_PARAMS)}
        columns |= {name: floats[:, i] for i, name in enumerate(FLOAT_PARAMS)}
        return SamplingRows(
            **columns,
            seq_slot=ints[:, _Int.SEQ_SLOT],
            mask_slot=ints[:, _Int.MASK_SLOT],
            seed=seed.astype(np.uint32),  # keeps the bits
            needs_sampler_state=ints[:, _Int.NEEDS_SAMPLER_STATE] != 0,
            bans_stops=ints[:, _Int.BANS_STOPS] != 0,
            wants_logprobs=ints[:, _Int.WANTS_LOGPROBS] != 0,
            has_grammar=ints[:, _Int.HAS_GRAMMAR] != 0,
        )


@dataclass(frozen=True, slots=True)
class BatchShapes:
    """The batch shapes compiled at warm-up, at most 16, and the sizes common to them.

    Attributes:
        tile: query tokens of the longest tiles.
        max_prefill_tokens: maximum prompt tokens of one step, a multiple of ``tile``.
        page_size: tokens of a block.
        pages_per_seq: width of the page table.
        num_seq_slots: maximum number of running requests.
        deterministic: prefill and decode have one shape each and never share a step, so that the
            same program computes a row whatever else runs.
    """

    shapes: tuple[BatchShape, ...]
    tile: int
    max_prefill_tokens: int
    page_size: int
    pages_per_seq: int
    num_seq_slots: int
    deterministic: bool = False

    @property
    def max_decode_rows(self) -> int:
        """Decode rows of the largest shapes: at least one for each running request."""
        return max(shape.num_decode for shape in self.shapes)

    @property
    def decode_sizes(self) -> list[int]:
        """Rows of the shapes without tiles, in rising order."""
        return sorted(shape.num_decode for shape in self.shapes if not shape.num_tiles)

    @property
    def num_mask_slots(self) -> int:
        """Token masks of a step: one for each running request, and one for each drafted token."""
        return self.num_seq_slots + self.max_decode_rows

    @classmethod
    def plan(
        cls,
        *,
        max_num_seqs: int,
        max_prefill_tokens: int,
        tile: int,
        page_size: int,
        pages_per_seq: int,
        deterministic: bool = False,
        min_decode_rows: int = 1,
    ) -> BatchShapes:
        """Choose the shapes: powers of two for pure decode, a few sizes where prompts prefill.

        Long tiles read the cached context least often, but would be mostly padding for a short
        prompt. Hence shapes for one chunk by size, for a full budget of a few long chunks, and for
        a full budget of many short ones.

        Args:
            max_num_seqs: maximum number of running requests.
            max_prefill_tokens: prompt tokens of one step, rounded up to whole tiles.
            min_decode_rows: decode rows that there are at least, so that few requests can have
                drafts. Deterministic shapes have none for it: a row's bits would differ from those
                without drafts.
        """
        if deterministic:
            shapes_of_kinds = (BatchShape(0, max_num_seqs, tile), BatchShape(1, 0, tile))
            return cls(shapes_of_kinds, tile, tile, page_size, pages_per_seq, max_num_seqs, True)
        max_tiles = -(-max_prefill_tokens // tile)
        half, quarter = -(-tile // 2), -(-tile // 4)
        if max_tiles <= _MAX_CPU_TILES:
            decode = {1 << i for i in range(6)}
            prefill = {(1, half), (1, tile), (max_tiles, tile)}
            prefill.add((1, quarter) if max_tiles < _MAX_CPU_TILES else (max_tiles // 2, tile))
        else:
            # For an accelerator padding decode rows cost next to nothing, and a budget of padding
            # tokens costs a lot.
            decode = {1, 4, 16}
            prefill = {(1, half), (1, tile), (-(-max_tiles // 4), tile), (max_tiles, tile)}
        max_rows = max(max_num_seqs, min_decode_rows)
        decode = {num for num in decode if num < max_rows} | {max_rows}
        shapes = {BatchShape(0, d, tile) for d in decode}
        shapes |= {BatchShape(n, d, t) for n, t in prefill for d in (0, max_rows)}
        shapes.add(BatchShape(4 * max_tiles, max_rows, quarter))
        by_size = sorted(shapes, key=lambda s: (s.num_tokens, s.num_rows))
        return cls(tuple(by_size), tile, max_tiles * tile, page_size, pages_per_seq, max_num_seqs)

    def longest_chunk(self, lengths: Sequence[int], wanted: int) -> int:
        """Return how many of ``wanted`` tokens a step can prefill beside chunks of ``lengths``.

        A chunk that is cut ends at the end of a block, so that the block can be shared. The result
        is 0 if not even one block fits. Decode rows need no room: every number of tiles has a shape
        with all of them.
        """
        if self.deterministic:
            return 0 if lengths else min(wanted, self.tile)
        longest, num_decode = 0, self.max_decode_rows
        for shape in self.shapes:
            if shape.num_decode == num_decode:
                taken = sum(-(-length // shape.tile) for length in lengths)
                longest = max(longest, (shape.num_tiles - taken) * shape.tile)
        return wanted if wanted <= longest else longest // self.page_size * self.page_size

    def build(self, chunks: Sequence[Chunk]) -> tuple[Batch[np.ndarray], np.ndarray, np.ndarray]:
        """Lay ``chunks`` out in the smallest shape that fits them.

        Returns:
            The batch; the row that holds each chunk's sample, i32[num_chunks]; and the index of
            each chunk's first token among the flat tokens, i32[num_chunks].
        """
        shape = self.fitting(chunks)
        batch = Batch.empty(shape, self.pages_per_seq, self.num_seq_slots)
        sample_rows = np.empty(len(chunks), np.int32)
        starts = np.empty(len(chunks), np.int32)
        next_decode, next_tile = 0, shape.num_decode
        for i, chunk in enumerate(chunks):
            if chunk.is_decode:
                starts[i] = row = next_decode
                next_decode += chunk.num_rows
                self._fill_decode(batch, row, chunk)
            else:
                starts[i] = shape.num_decode + (next_tile - shape.num_decode) * shape.tile
                next_tile = self._fill_tiles(batch, next_tile, chunk)
                row = next_tile - 1
            sample_rows[i] = row
            if chunk.samples:
                self._fill_sampling(batch, row, chunk)
        return batch, sample_rows, starts

    def fitting(self, chunks: Sequence[Chunk]) -> BatchShape:
        """Return the smallest shape that fits ``chunks``."""
        lengths = [chunk.length for chunk in chunks if not chunk.is_decode]
        num_decode = sum(chunk.num_rows for chunk in chunks if chunk.is_decode)
        return next(shape for shape in self.shapes if shape.fits(num_decode, lengths))

    def draft_mask_slots(self, first_row: int, chunk: Chunk) -> range:
        """Return where the token masks behind a chunk's drafted tokens are, if it has any."""
        first = self.num_seq_slots + first_row + 1
        return range(first, first + len(chunk.draft_masks))

    def _fill_decode(self, batch: Batch[np.ndarray], row: int, chunk: Chunk) -> None:
        """Fill a row, and a row for each drafted token.

        All of them have the pages of one sequence. A layer writes the K and V of all rows before it
        reads any, so that a drafted token attends to those before it.
        """
        request, last_page = chunk.request, _Int.PAGES + len(chunk.pages)
        for i in range(chunk.num_rows):
            ints = batch.ints[row + i]
            ints[_QUERY] = chunk.start + i, 1
            ints[_Int.PAGES : last_page] = chunk.pages
        if chunk.start < request.num_known:
            batch.tokens[row] = request.tokens[chunk.start]
        else:
            # The host has not seen the token yet: a step in flight samples it.
            batch.ints[row, _Int.SOURCE] = request.seq_slot
        if chunk.draft:
            batch.tokens[row + 1 : row + chunk.num_rows] = chunk.draft

    def _fill_sampling(self, batch: Batch[np.ndarray], row: int, chunk: Chunk) -> None:
        """Fill the sampling settings of the row that ends a chunk, and of its drafted tokens.

        Rows of drafted tokens read and write the state of the request's seq_slot. What a rejected
        one leaves there is not read: the host knows the request's next token, and only penalties
        read counts, with which a request has no drafts.
        """
        request = chunk.request
        if request.sampling_row is None:
            has_mask = request.token_mask is not None
            request.sampling_row = _sampling_row(request.params, request.seed, has_mask)
        constants, floats = request.sampling_row
        slot, min_tokens = request.seq_slot, request.params.min_tokens
        mask_slots = [slot] * chunk.num_rows
        if chunk.draft_masks:
            mask_slots[1:] = self.draft_mask_slots(row, chunk)
        num_output = chunk.start + chunk.length - request.num_prompt  # without the new sample
        for i, mask_slot in enumerate(mask_slots):
            ints = batch.ints[row + i]
            ints[_SAMPLE] = slot, mask_slot, num_output + i < min_tokens
            ints[_CONSTANTS] = constants
            batch.floats[row + i] = floats

    def _fill_tiles(self, batch: Batch[np.ndarray], first_row: int, chunk: Chunk) -> int:
        """Lay a chunk out in tiles from ``first_row``; return the row after its last."""
        shape = batch.shape
        end = chunk.start + chunk.length
        starts = np.arange(chunk.start, end, shape.tile)
        rows = slice(first_row, first_row + len(starts))
        first = shape.num_decode + (first_row - shape.num_decode) * shape.tile
        batch.tokens[first : first + chunk.length] = chunk.request.tokens[chunk.start : end]
        batch.page_table[rows, : len(chunk.pages)] = chunk.pages
        batch.query_start[rows] = starts
        batch.query_len[rows] = np.minimum(shape.tile, end - starts)
        return rows.stop


def _sampling_row(
    params: SamplingParams, seed: tuple[int, int], has_mask: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return a request's constants: columns ``_CONSTANTS`` of ``ints``, and its ``floats``."""
    ints = np.zeros(_Int.PAGES, np.int32)
    ints[_Int.NEEDS_SAMPLER_STATE] = params.needs_sampler_state
    ints[_Int.WANTS_LOGPROBS] = params.logprobs is not None
    ints[_Int.SEED : _Int.SEED + 2] = np.array(seed, np.uint32).view(np.int32)
    ints[_Int.HAS_GRAMMAR] = has_mask
    ints[_Int.PARAMS : _Int.PAGES] = [getattr(params, name) for name in INT_PARAMS]
    floats = np.array([getattr(params, name) for name in FLOAT_PARAMS], np.float32)
    if params.is_greedy:
        floats[FLOAT_PARAMS.index("temperature")] = 0.0
    return ints[_CONSTANTS], floats


_PADDING = _sampling_row(SamplingParams(temperature=0.0), (0, 0))
