"""Free memory of the heap goes back to the system."""

import subprocess
import sys

import pytest

from kvflow_jax.runtime import heap

needs_glibc = pytest.mark.skipif(heap._libc() is None, reason="needs glibc 2.33")

# Every second of the blocks stays, so that malloc by itself gives nothing back.
HOLES = """
import ctypes
from kvflow_jax.runtime import heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

size, num = 100_000, 1000
blocks = [libc.malloc(size) for _ in range(num)]
for block in blocks:
    libc.memset(block, 1, size)
for block in blocks[::2]:
    libc.free(block)
assert heap.free_bytes() > size * num // 2
before = resident()
assert heap.trim_heap()
print(before - resident())
"""


@needs_glibc
def test_holes_between_blocks_are_given_back():
    child = subprocess.run(
        [sys.executable, "-c", HOLES], capture_output=True, text=True, check=True
    )
    assert int(child.stdout) > 30_000_000


def test_little_free_memory_is_kept(monkeypatch):
    monkeypatch.setattr(heap, "LEAST_FREE_BYTES", 1 << 60)
    assert not heap.trim_heap()


def test_another_libc_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "_libc", lambda: None)
    assert heap.free_bytes() == 0
    assert not heap.trim_heap()
