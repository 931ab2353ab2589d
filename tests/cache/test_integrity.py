"""The check of the whole cache finds each kind of disagreement."""

from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.cache.integrity import check_cache, child_nodes
from kvflow_jax.errors import IntegrityError
from tests.cache.tiered_cache import ROOT, TieredCache, prompt

SHARED = prompt(9, 4)


@pytest.fixture
def cache():
    """Two sequences of four blocks that share the first two; the first one is leased."""
    tiers = TieredCache(num_pages=10)
    tiers.serve(SHARED + prompt(1, 4))
    tiers.serve(SHARED + prompt(2, 4))
    tiers.lease(SHARED + prompt(1, 4))
    return tiers.cache


def check(cache, records=None):
    check_cache(
        cache._nodes.index,
        cache._table,
        cache._nodes.records() if records is None else records,
        [lease.blocks for lease in cache._leases],
    )


def path(cache, tokens):
    return cache.match(ROOT, np.asarray(tokens, np.int32))


def test_a_sound_cache_passes(cache):
    check(cache)


def test_the_children_of_a_node_are_the_branches_below_it(cache):
    shared = path(cache, SHARED)
    branches = [int(path(cache, SHARED + prompt(agent, 4))[2]) for agent in (1, 2)]
    children = child_nodes(cache._nodes.index, cache._table)
    assert sorted(children.pop(int(shared[0]))) == sorted(branches)
    assert children == {branch: [] for branch in branches}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("leases", 0, "lease counts"),
        ("num_children", 5, "child counts"),
        ("parent", 7, "parents of blocks"),
        ("head", 7, "head of blocks"),
    ],
)
def test_a_wrong_column_of_the_table_is_found(cache, column, value, message):
    getattr(cache._table, column)[path(cache, SHARED)[1]] = value
    with pytest.raises(IntegrityError, match=message):
        check(cache)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("blocks", np.empty(0, np.int32), "does not have its blocks"),
        ("key", b"", "path key"),
        ("root", None, "root of node"),
    ],
)
def test_a_wrong_node_record_is_found(cache, field, value, message):
    records, head = cache._nodes.records(), int(path(cache, SHARED)[0])
    records[head] = replace(records[head], **{field: value})
    with pytest.raises(IntegrityError, match=message):
        check(cache, records)


def test_a_record_of_a_node_that_left_the_index_is_found(cache):
    records = cache._nodes.records()
    records[8] = records[int(path(cache, SHARED)[0])]
    with pytest.raises(IntegrityError, match="records of nodes that have left the index"):
        check(cache, records)


def test_a_leaked_block_is_found(cache):
    cache._table.allocate(1, now=0.0)
    with pytest.raises(IntegrityError, match="neither leased nor indexed nor free"):
        check(cache)


def test_a_block_that_only_the_table_counts_as_indexed_is_found(cache):
    cache._table.head[cache._table.allocate(1, now=0.0)] = 0
    with pytest.raises(IntegrityError, match="not those of the index"):
        check(cache)


def test_a_leased_block_without_a_page_is_found(cache):
    blocks = path(cache, SHARED + prompt(1, 4))[-1:]
    cache._table.extent[blocks], cache._table.host_state[blocks] = 0, 2
    cache._table.drop_pages(blocks)
    with pytest.raises(IntegrityError, match="a leased block has no page"):
        check(cache)
