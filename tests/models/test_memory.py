"""What memory is free, and memory for what a device is to hold."""

import jax
import numpy as np
import pytest

from kvflow_jax.models.memory import FreeMemory, aligned_empty, free_host_bytes


@pytest.mark.parametrize("shape", [(3, 700, 1000), (7,), (0, 4)])
def test_memory_that_a_cpu_device_uses_in_place(shape):
    weights = aligned_empty(shape, np.dtype("float32"))
    assert weights.shape == shape
    assert weights.flags.c_contiguous
    weights[...] = 1.0
    assert weights.ctypes.data % 64 == 0  # as XLA wants it
    if weights.size:
        placed = jax.device_put(weights, may_alias=True)
        assert placed.unsafe_buffer_pointer() == weights.ctypes.data


def test_some_memory_is_free():
    assert free_host_bytes() > 0


def test_of_several_hosts_the_least_counts():
    assert FreeMemory.of_hosts([FreeMemory(7, 50), FreeMemory(5, 30)]) == FreeMemory(5, 60)
    assert FreeMemory.of_hosts([FreeMemory(None, 50), FreeMemory(None, 30)]).device_bytes is None
