"""Free memory of hosts and devices, and host arrays that a device aliases."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from kvflow_jax.models.memory import (
    FreeMemory,
    aligned_empty,
    free_device_bytes,
    free_host_bytes,
)


@pytest.mark.parametrize("shape", [(3, 700, 1000), (7,), (0, 4)])
def test_a_cpu_device_aliases_aligned_memory(shape):
    weights = aligned_empty(shape, np.dtype("float32"))
    assert weights.shape == shape
    assert weights.flags.c_contiguous
    weights[...] = 1.0
    assert weights.ctypes.data % 64 == 0  # XLA's requirement
    if weights.size:
        placed = jax.device_put(weights, may_alias=True)
        assert placed.unsafe_buffer_pointer() == weights.ctypes.data


def test_this_host_has_free_memory():
    assert free_host_bytes() > 0


def test_the_host_with_the_least_memory_counts_for_all():
    assert FreeMemory.of_hosts([FreeMemory(7, 50), FreeMemory(5, 30)]) == FreeMemory(5, 60)
    assert FreeMemory.of_hosts([FreeMemory(None, 50), FreeMemory(None, 30)]).device_bytes is None


@pytest.mark.parametrize(
    ("platform", "stats", "free"),
    [
        ("gpu", {"bytes_limit": 100, "bytes_in_use": 30}, 70),
        ("gpu", {"bytes_in_use": 30}, None),
        ("gpu", None, None),
        ("cpu", {"bytes_limit": 100, "bytes_in_use": 30}, None),
    ],
)
def test_a_device_may_not_report_free_memory(platform, stats, free):
    device = SimpleNamespace(platform=platform, memory_stats=lambda: stats)
    assert free_device_bytes(device) == free
    assert FreeMemory.measure(device).device_bytes == free
