"""Block hashes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.requests.block_hashes import block_hashes, common_prefix_len
from tests.support.plain_request import make_request

PAGE = 4


def test_only_full_blocks_have_a_hash():
    request = make_request(range(11))
    for num_tokens in (0, 3, 4, 11):
        assert block_hashes(request, num_tokens, PAGE).shape == (num_tokens // PAGE,)


def test_equal_prefixes_have_equal_hashes_up_to_where_they_differ():
    first, second = make_request(range(12)), make_request([*range(9), 0, 0, 0])
    hashes = [block_hashes(request, 12, PAGE) for request in (first, second)]
    assert common_prefix_len(*hashes) == 2


def test_a_block_behind_a_difference_has_another_hash():
    first, second = make_request([1, 2, 3, 4, 5, 6, 7, 8]), make_request([0, 2, 3, 4, 5, 6, 7, 8])
    a, b = (block_hashes(request, 8, PAGE) for request in (first, second))
    assert (a != b).all()


def test_requests_of_different_salts_have_different_hashes():
    first, second = make_request(range(8)), make_request(range(8), salt="tenant")
    a, b = (block_hashes(request, 8, PAGE) for request in (first, second))
    assert common_prefix_len(a, b) == 0


def test_hashes_grow_with_the_sequence_and_do_not_depend_on_how_it_grew():
    grown, whole = make_request(range(8)), make_request(range(20))
    before = block_hashes(grown, 8, PAGE)
    for token in range(8, 20):
        grown.append(token)
    after = block_hashes(grown, 20, PAGE)
    assert common_prefix_len(before, after) == 2
    np.testing.assert_array_equal(after, block_hashes(whole, 20, PAGE))


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [([], [], 0), ([1], [], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [3, 2], 0), ([1, 2], [1, 3], 1)],
)
def test_common_prefix_len(a, b, length):
    assert common_prefix_len(np.array(a, np.int64), np.array(b, np.int64)) == length


@given(st.lists(st.integers(0, 1), max_size=16), st.lists(st.integers(0, 1), max_size=16))
def test_common_hashes_are_the_common_blocks(a, b):
    hashes = [block_hashes(make_request([7, *tokens]), len(tokens) + 1, 2) for tokens in (a, b)]
    num_common = 0
    for left, right in zip([7, *a], [7, *b], strict=False):
        if left != right:
            break
        num_common += 1
    assert common_prefix_len(*hashes) == num_common // 2
