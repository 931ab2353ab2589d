"""Sizes of earlier starts: found again by the same key only, and lost without harm."""

import pytest

from kvflow_jax.api.pool_sizes import PoolSizes

KEY = ("model", "float32", 16)


def test_a_size_is_found_again_by_its_key(tmp_path):
    PoolSizes(tmp_path).remember(96, *KEY)
    assert PoolSizes(tmp_path).last(*KEY) == 96
    assert PoolSizes(tmp_path).last("model", "float32", 32) is None
    PoolSizes(tmp_path).remember(128, *KEY)
    assert PoolSizes(tmp_path).last(*KEY) == 128
    assert [path.name for path in tmp_path.iterdir()] == ["pool-sizes.json"]


def test_the_oldest_of_many_keys_are_forgotten(tmp_path):
    sizes = PoolSizes(tmp_path)
    for i in range(300):
        sizes.remember(i + 1, i)
    assert sizes.last(0) is None
    assert sizes.last(299) == 300


@pytest.mark.parametrize("text", ["", "[", "[1]", '{"x": "y"}', "[" * 100_000, "\xff"])
def test_a_damaged_file_is_as_none(tmp_path, text):
    sizes = PoolSizes(tmp_path)
    sizes.remember(1, *KEY)
    (tmp_path / "pool-sizes.json").write_bytes(text.encode("latin-1"))
    assert sizes.last(*KEY) is None
    sizes.remember(96, *KEY)
    assert sizes.last(*KEY) == 96


def test_a_folder_that_is_missing_remembers_nothing(tmp_path):
    sizes = PoolSizes(tmp_path / "none")
    sizes.remember(96, *KEY)
    assert sizes.last(*KEY) is None
