"""Attention of a ragged batch over the paged pool.

A batch is a list of *rows*. The first ``num_decode`` rows hold one query token each, every later
row a tile of up to ``tile`` consecutive query tokens of one sequence (a prompt's chunk is cut into
tiles). Flat tokens are laid out in row order, so ``num_tokens = num_decode + num_tiles * tile``.
All shapes are static; what is padding is said by ``query_len``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax

@partial(
    jax.tree_util.register_dataclass,
    data_fields=["page_table", "query_start", "query_len", "write_slots"],
    meta_fields=["num_decode", "tile"],
)
@dataclass(frozen=True)
class Rows:
    """Which tokens of a batch attend to which pages.

    Query j of row r stands at position ``query_start[r] + j`` of its sequence and attends to
    positions 0 to itself, whose KV lies in ``page_table[r]``. Rows with ``query_len`` 0 are padding.
    """

    page_table: jax.Array  # i32[num_rows, pages_per_seq], padded with the null page
    query_start: jax.Array  # i32[num_rows]
    query_len: jax.Array  # i32[num_rows]
    write_slots: jax.Array  # i32[num_tokens], out of range where the token is padding
    num_decode: int
    tile: int
