"""Host memory that is given back in parts."""

import mmap

import numpy as np
import pytest

from kvflow_jax.models.memory import FreeMemory, free_host_bytes, give_back, returnable_empty


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="this system takes nothing back")
def test_what_is_given_back_is_gone_and_the_rest_stays():
    weights = returnable_empty((3, 700, 1000), np.dtype("float32"))
    assert weights.flags.c_contiguous
    assert weights.flags.writeable
    assert weights.ctypes.data % 64 == 0  # as XLA wants it, to use it in place
    weights[:] = 1.0
    give_back(weights[1])
    page = mmap.PAGESIZE // 4
    assert not weights[1].ravel()[page:-page].any()
    assert weights[0].all()
    assert weights[2].all()


def test_other_memory_is_left_alone():
    weights = np.ones((2, 5000), np.float32)
    give_back(weights[0])
    mapped = returnable_empty((5000, 4), np.dtype("float32"))
    mapped[:] = 1.0
    give_back(mapped[:, 1])  # not in one piece
    assert weights.all()
    assert mapped.all()
    assert returnable_empty((0, 4), np.dtype("float32")).shape == (0, 4)


def test_some_memory_is_free():
    assert free_host_bytes() > 0


def test_of_several_hosts_the_least_counts():
    assert FreeMemory.of_all([FreeMemory(7, 50), FreeMemory(5, 30)]) == FreeMemory(5, 60)
    assert FreeMemory.of_all([FreeMemory(None, 50), FreeMemory(None, 30)]).device_bytes is None
