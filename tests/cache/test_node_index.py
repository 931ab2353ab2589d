"""Indexed nodes: records and table columns follow the functional index."""

import numpy as np
import pytest

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable
from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.node_index import NodeIndex
from kvflow_jax.errors import IntegrityError

PAGE = 2
ROOT = RootKey("model")


def ids(*numbers):
    return np.array(numbers, np.int32)


@pytest.fixture
def table():
    table = BlockTable(8, 8)
    table.allocate(8, now=0.0)
    return table


@pytest.fixture
def nodes(table):
    """A node of blocks 0, 1, 2 for the tokens 1 1 2 2 3 3."""
    nodes = NodeIndex(table, PAGE)
    assert nodes.insert(ROOT, ids(1, 1, 2, 2, 3, 3), ids(0, 1, 2), 0, may_grow=True) is None
    return nodes


def test_an_insertion_sets_the_columns_of_its_blocks(table, nodes):
    assert table.head[:3].tolist() == [0, 0, 0]
    assert table.parent[:3].tolist() == [NO_BLOCK, 0, 1]
    assert table.depth[:3].tolist() == [0, 1, 2]
    assert table.num_children[:3].tolist() == [1, 1, 0]
    assert nodes.num_blocks == 3
    nodes.check_integrity()


def test_a_leaf_grows_unless_it_must_not(table, nodes):
    tokens = ids(1, 1, 2, 2, 3, 3, 4, 4)
    nodes.insert(ROOT, tokens, ids(0, 1, 2, 3), 3, may_grow=True)
    assert nodes.blocks_of(0).tolist() == [0, 1, 2, 3]
    nodes.insert(ROOT, ids(*tokens, 5, 5), ids(0, 1, 2, 3, 4), 4, may_grow=False)
    assert 4 in nodes
    assert table.parent[4] == 3
    assert table.head[4] == 4


def test_a_sequence_that_branches_off_splits_the_node(table, nodes):
    split = nodes.insert(ROOT, ids(1, 1, 9, 9), ids(0, 5), 1, may_grow=True)
    assert split == (0, 1)
    assert nodes.blocks_of(0).tolist() == [0]
    assert nodes.blocks_of(1).tolist() == [1, 2]
    assert table.num_children[0] == 2
    assert nodes.split_after(1) == (1, 2)
    assert nodes.split_after(2) is None  # the last of its node


def test_other_blocks_for_the_same_tokens_are_an_error(nodes):
    with pytest.raises(IntegrityError, match="no longer in the index"):
        nodes.insert(ROOT, ids(1, 1, 2, 2, 4, 4), ids(0, 6, 7), 2, may_grow=True)


def test_removal_returns_the_nodes_that_have_no_blocks_left(table, nodes):
    nodes.insert(ROOT, ids(1, 1, 9, 9), ids(0, 5), 1, may_grow=True)
    assert nodes.remove(ids(5, 2)) == {5: 0}
    nodes.clear_columns(ids(5, 2))
    assert nodes.blocks_of(1).tolist() == [1]
    nodes.check_integrity()
    assert list(nodes.remove(ids(1, 0)).items()) == [(1, 0), (0, NO_BLOCK)]
    nodes.clear_columns(ids(1, 0))
    assert nodes.num_blocks == 0
    assert not nodes.records()
    nodes.check_integrity()


def test_the_integrity_check_finds_a_wrong_count(nodes):
    nodes.num_blocks = 9
    with pytest.raises(IntegrityError, match="count of indexed blocks"):
        nodes.check_integrity()
