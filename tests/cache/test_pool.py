"""The device pool: K and V are read where they were written, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.cache.pool import NULL_PAGE, KVPool, PoolSpec

SPEC = PoolSpec(num_layers=2, num_pages=4, page_size=2, num_kv_heads=3, head_dim=5)
# One program each: outside jit JAX compiles every small operation by itself.
write_kv, read, gather, scatter = map(
    jax.jit, (KVPool.write, KVPool.read, KVPool.gather, KVPool.scatter)
)


def kv(num_tokens, seed=0):
    shape = (2, num_tokens, SPEC.num_kv_heads, SPEC.head_dim)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(pool, layer, kv_slots, k, v):
    return write_kv(pool, layer, np.array(kv_slots, np.int32), k, v)


def test_sizes_count_k_and_v_of_all_layers():
    assert SPEC.page_bytes == 2 * 2 * 2 * 3 * 5 * 4
    assert SPEC.nbytes == KVPool.zeros(SPEC).data.nbytes == 4 * SPEC.page_bytes
    assert SPEC.num_kv_slots == 8
    halved = PoolSpec(2, 4, 2, 3, 5, "bfloat16")
    assert halved.page_bytes == SPEC.page_bytes // 2


def test_written_tokens_are_read_back_from_their_layer_and_page():
    k, v = kv(3)
    pool = write(KVPool.zeros(SPEC), 1, [2, 3, 6], k, v)
    read_k, read_v = read(pool, 1, np.array([1, 3]))
    assert read_k.shape == (2, SPEC.page_size, SPEC.num_kv_heads, SPEC.head_dim)
    np.testing.assert_array_equal(read_k[0], k[:2])
    np.testing.assert_array_equal(read_v[1, 0], v[2])
    assert not any(np.any(half) for half in read(pool, 0, np.arange(4)))
    assert not any(np.any(half) for half in read(pool, 1, np.array([NULL_PAGE, 2])))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_padded_token_is_dropped(layer):
    k, v = kv(2)
    pool = write(KVPool.zeros(SPEC), layer, [SPEC.num_kv_slots, SPEC.num_kv_slots + 5], k, v)
    assert not np.any(pool.data)


def test_gathered_blocks_are_scattered_bit_for_bit_to_other_pages():
    k, v = kv(8)
    pool = KVPool.zeros(SPEC)
    for layer in range(2):
        pool = write(pool, layer, range(8), k + layer, v - layer)
    blocks = gather(pool, np.array([1, 2, 3], np.int32))
    assert blocks.shape == (2, 3, SPEC.page_size, 2 * SPEC.num_kv_heads, SPEC.head_dim)
    # The second block is dropped: its page is past the pool.
    other = scatter(KVPool.zeros(SPEC), np.array([3, SPEC.num_pages, 2], np.int32), blocks)
    for layer in range(2):
        for target, source in ((3, 1), (2, 3)):
            for copy, original in zip(
                read(other, layer, np.array(target)),
                read(pool, layer, np.array(source)),
                strict=True,
            ):
                np.testing.assert_array_equal(copy, original)
        assert not any(np.any(half) for half in read(other, layer, np.array([0, 1])))


def test_written_values_take_the_dtype_of_the_pool():
    pool = KVPool.zeros(PoolSpec(2, 4, 2, 3, 5, "bfloat16"))
    k, v = kv(1)
    pool = write(pool, 0, [3], k, v)
    read_k, _ = read(pool, 0, np.array([1]))
    assert read_k.dtype == jnp.bfloat16
    np.testing.assert_array_equal(read_k[0, 1], k[0].astype(jnp.bfloat16))
