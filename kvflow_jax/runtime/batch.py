"""A step's batch: requests' chunks laid out as padded numpy arrays of a few fixed shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from kvflow_jax.requests.request import Chunk
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.sampler import SamplingRows


@dataclass(frozen=True, slots=True)
class BatchShape:
    """A compiled shape: ``num_decode`` rows of one token, then ``num_tiles`` rows of ``tile``."""

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
        """Whether so many decode rows fit, and chunks of these lengths into the tiles."""
        num_tiles = sum(-(-length // self.tile) for length in lengths)
        return num_decode <= self.num_decode and num_tiles <= self.num_tiles


class _Column:
    """Of ``Batch.ints``; the page table follows."""

    START = 0  # position of the first query token
    LEN = 1  # query tokens; 0 is padding
    SOURCE = 2  # of a decode row: slot whose last sample is its token; -1: it is in ``tokens``
    SEQ_SLOT = 3  # that keeps the sample; out of range: nobody's
    TOP_K = 4
    SEED = 5  # two of them, bits of unsigned integers
    USES_MEMORY = 7
    BANS_STOPS = 8
    WANTS_LOGPROBS = 9
    PAGES = 10


class _Float:
    """Column of ``Batch.floats``."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    REPETITION = 3
    FREQUENCY = 4
    PRESENCE = 5
    COUNT = 6


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "ints", "floats"],
    meta_fields=["shape"],
)
@dataclass(frozen=True)
class Batch:
    """One step's input. Rows with ``query_len`` 0 are padding.

    Numpy arrays on the host, traced ones within the step; the properties work on either. Few
    arrays, because each costs its dispatch more than what is in it.
    """

    shape: BatchShape
    tokens: Any  # i32[num_tokens], in row order
    ints: Any  # i32[num_rows, _Column.PAGES + pages_per_seq]
    floats: Any  # f32[num_rows, _Float.COUNT]

    @classmethod
    def empty(cls, shape: BatchShape, pages_per_seq: int, num_slots: int) -> Batch:
        """All padding: what warm-up runs, and what ``BatchShapes.build`` fills."""
        ints = np.zeros((shape.num_rows, _Column.PAGES + pages_per_seq), np.int32)
        ints[:, _Column.SOURCE] = -1
        ints[:, _Column.SEQ_SLOT] = num_slots
        floats = np.zeros((shape.num_rows, _Float.COUNT), np.float32)
        floats[:, [_Float.TOP_P, _Float.REPETITION]] = 1.0
        return cls(shape, np.zeros(shape.num_tokens, np.int32), ints, floats)

    @property
    def page_table(self) -> Any:
        """i32[num_rows, pages_per_seq], padded with the null page."""
        return self.ints[:, _Column.PAGES :]

    @property
    def query_start(self) -> Any:
        """i32[num_rows], position of the first query token."""
        return self.ints[:, _Column.START]

    @property
    def query_len(self) -> Any:
        """i32[num_rows]"""
        return self.ints[:, _Column.LEN]

    @property
    def token_source(self) -> Any:
        """i32[num_decode], slot whose last sample is the token; -1: ``tokens`` has it."""
        return self.ints[: self.shape.num_decode, _Column.SOURCE]

    @property
    def wants_logprobs(self) -> bool:
        """Whether any row does; on the host."""
        return bool(self.ints[:, _Column.WANTS_LOGPROBS].any())

    @property
    def sampling(self) -> SamplingRows:
        """Of every row; only those that end a chunk that samples count."""
        ints, floats = self.ints, self.floats
        seed = ints[:, _Column.SEED : _Column.SEED + 2]
        return SamplingRows(
            seq_slot=ints[:, _Column.SEQ_SLOT],
            temperature=floats[:, _Float.TEMPERATURE],
            top_k=ints[:, _Column.TOP_K],
            top_p=floats[:, _Float.TOP_P],
            min_p=floats[:, _Float.MIN_P],
            repetition=floats[:, _Float.REPETITION],
            frequency=floats[:, _Float.FREQUENCY],
            presence=floats[:, _Float.PRESENCE],
            seed=seed.astype(np.uint32),  # modulo 2**32: the bits stay
            uses_memory=ints[:, _Column.USES_MEMORY] != 0,
            bans_stops=ints[:, _Column.BANS_STOPS] != 0,
            wants_logprobs=ints[:, _Column.WANTS_LOGPROBS] != 0,
        )


@dataclass(frozen=True, slots=True)
class BatchShapes:
    """The shapes that are compiled at warm-up, at most 16, and the sizes all of them share.

    Attributes:
        tile: query tokens of the longest tiles.
        max_prefill_tokens: most prompt tokens of one step, a multiple of ``tile``.
        page_size: tokens of a block.
        pages_per_seq: width of a page table.
        num_seq_slots: how many requests can run; samples are kept by slot.
        deterministic: prompts and decoding each have one shape and never share a step, so that a
            row is computed by the same program whatever else there is to do.
    """

    shapes: tuple[BatchShape, ...]
    tile: int
    max_prefill_tokens: int
    page_size: int
    pages_per_seq: int
    num_seq_slots: int
    deterministic: bool = False

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
    ) -> BatchShapes:
        """Powers of two for pure decode; where prompts are in the batch, a few sizes.

        Long tiles read the cached context least often, but a short prompt would be mostly padding
        in them. So there are shapes for one chunk by size, for a full budget of few long chunks,
        and for a full budget of many short ones.
        """
        if deterministic:
            two = (BatchShape(0, max_num_seqs, tile), BatchShape(1, 0, tile))
            return cls(two, tile, tile, page_size, pages_per_seq, max_num_seqs, True)
        most = -(-max_prefill_tokens // tile)
        half, quarter = -(-tile // 2), -(-tile // 4)
        if most < 4:
            decode = {1 << i for i in range(6)}
            alone = {(1, quarter), (1, half), (1, tile), (most, tile)}
        else:
            # A large budget: for an accelerator, to which a few more rows to decode are nothing,
            # and a budget of padding is much.
            decode = {1, 4, 16}
            alone = {(1, half), (1, tile), (-(-most // 4), tile), (most, tile)}
        decode = {num for num in decode if num < max_num_seqs} | {max_num_seqs}
        shapes = {BatchShape(0, d, tile) for d in decode}
        shapes |= {BatchShape(n, d, t) for n, t in alone for d in (0, max_num_seqs)}
        shapes.add(BatchShape(4 * most, max_num_seqs, quarter))
        by_size = sorted(shapes, key=lambda s: (s.num_tokens, s.num_rows))
        return cls(tuple(by_size), tile, most * tile, page_size, pages_per_seq, max_num_seqs)

    def longest_chunk(self, lengths: Sequence[int], wanted: int) -> int:
        """Most tokens, at most ``wanted``, that a step can compute beside chunks of ``lengths``.

        All of them in tiles; decode rows come with every size of those. What is cut off ends where
        a block does, so that it can be shared; 0 where none fits.
        """
        if self.deterministic:
            return 0 if lengths else min(wanted, self.tile)
        most = 0
        for shape in self.shapes:
            if shape.num_decode == self.num_seq_slots:
                taken = sum(-(-length // shape.tile) for length in lengths)
                most = max(most, (shape.num_tiles - taken) * shape.tile)
        return wanted if wanted <= most else most // self.page_size * self.page_size

    def build(self, chunks: Sequence[Chunk]) -> tuple[Batch, np.ndarray, np.ndarray]:
        """Lay ``chunks`` out in the smallest shape that holds them.

        Returns:
            The batch, and of each chunk, i32[num_chunks], the row whose sample is its own, and
            where among the flat tokens it begins.
        """
        lengths = [chunk.length for chunk in chunks if not chunk.is_decode]
        num_decode = len(chunks) - len(lengths)
        shape = next(shape for shape in self.shapes if shape.fits(num_decode, lengths))
        batch = Batch.empty(shape, self.pages_per_seq, self.num_seq_slots)
        sample_rows = np.empty(len(chunks), np.int32)
        starts = np.empty(len(chunks), np.int32)
        next_decode, next_tile = 0, shape.num_decode
        for i, chunk in enumerate(chunks):
            if chunk.is_decode:
                starts[i] = row = next_decode
                next_decode += 1
                self._fill_decode(batch, row, chunk)
            else:
                starts[i] = shape.num_decode + (next_tile - shape.num_decode) * shape.tile
                next_tile = self._fill_tiles(batch, next_tile, chunk)
                row = next_tile - 1
            sample_rows[i] = row
            if chunk.samples:
                _fill_sampling(batch, row, chunk)
        return batch, sample_rows, starts

    def _fill_decode(self, batch: Batch, row: int, chunk: Chunk) -> None:
        batch.page_table[row, : len(chunk.pages)] = chunk.pages
        batch.query_start[row] = chunk.start
        batch.query_len[row] = 1
        if chunk.start < chunk.request.num_known:
            batch.tokens[row] = chunk.request.tokens[chunk.start]
        else:  # sampled by a step whose result the host has not seen yet
            batch.token_source[row] = chunk.request.seq_slot

    def _fill_tiles(self, batch: Batch, first_row: int, chunk: Chunk) -> int:
        """Lay a chunk out in tiles from ``first_row``; the row after its last."""
        shape = batch.shape
        end = chunk.start + chunk.length
        starts = np.arange(chunk.start, end, shape.tile)
        rows = slice(first_row, first_row + len(starts))
        at = shape.num_decode + (first_row - shape.num_decode) * shape.tile
        batch.tokens[at : at + chunk.length] = chunk.request.tokens[chunk.start : end]
        batch.page_table[rows, : len(chunk.pages)] = chunk.pages
        batch.query_start[rows] = starts
        batch.query_len[rows] = np.minimum(shape.tile, end - starts)
        return rows.stop


def _fill_sampling(batch: Batch, row: int, chunk: Chunk) -> None:
    request = chunk.request
    if request.sampling_row is None:
        request.sampling_row = _sampling_row(request.params, request.seed)
    ints = batch.ints[row]
    ints[_Column.TOP_K : _Column.PAGES], batch.floats[row] = request.sampling_row
    ints[_Column.SEQ_SLOT] = request.seq_slot
    num_output = chunk.start + chunk.length - request.num_prompt  # before the token it samples
    ints[_Column.BANS_STOPS] = num_output < request.params.min_tokens


def _sampling_row(params: SamplingParams, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What a request's rows hold at every step: i32, columns TOP_K to PAGES, and the floats."""
    ints = np.zeros(_Column.PAGES, np.int32)
    floats = np.empty(_Float.COUNT, np.float32)
    ints[_Column.TOP_K] = params.top_k
    ints[_Column.SEED : _Column.SEED + 2] = np.array(seed, np.uint32).view(np.int32)
    ints[_Column.USES_MEMORY] = params.uses_memory
    ints[_Column.WANTS_LOGPROBS] = params.logprobs is not None
    floats[_Float.TEMPERATURE] = 0.0 if params.is_greedy else params.temperature
    floats[_Float.TOP_P] = params.top_p
    floats[_Float.MIN_P] = params.min_p
    floats[_Float.REPETITION] = params.repetition_penalty
    floats[_Float.FREQUENCY] = params.frequency_penalty
    floats[_Float.PRESENCE] = params.presence_penalty
    return ints[_Column.TOP_K :], floats
