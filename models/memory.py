"""Free memory of devices and hosts, and host arrays that a CPU device uses without a copy."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


class Device(Protocol):
    """What is read of a ``jax.Device``, which type checkers do not know."""

    @property
    def platform(self) -> str:
        """JAX's name: cpu, gpu or tpu."""
        ...

    def memory_stats(self) -> Mapping[str, int] | None:
        """Return counters of the device's allocator; None if it has none."""
        ...


def free_host_bytes() -> int:
    """Return the bytes that this host can still allocate, within the cgroup's memory limit."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (
        limit := (group / "memory.max").read_text().strip()
    ) != "max":
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # The page cache counts as used, but the kernel reclaims it on demand.
        cached = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        free = min(free, int(limit) - used + cached)
    return max(free, 0)


def free_device_bytes(device: Device) -> int | None:
    """Return the free bytes of a device; None if it shares the host's memory or reports none."""
    stats = device.memory_stats()
    if device.platform == "cpu" or not stats or "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"] - stats["bytes_in_use"])


@dataclass(frozen=True)
class FreeMemory:
    """Memory that a model and its KV cache may use.

    Attributes:
        device_bytes: free bytes of each device; None: the devices use the host's memory.
        host_bytes: free bytes of all hosts together.
    """

    device_bytes: int | None
    host_bytes: int

    @classmethod
    def measure(cls, device: Device) -> FreeMemory:
        """Return the free memory of a device, which stands for all local devices, and this host."""
        return cls(free_device_bytes(device), free_host_bytes())

    @classmethod
    def of_hosts(cls, hosts: Sequence[FreeMemory]) -> FreeMemory:
        """Combine the hosts of one sharded model; shards are equal, so the minimum counts."""
        device_bytes = [host.device_bytes for host in hosts if host.device_bytes is not None]
        host_bytes = min(host.host_bytes for host in hosts)
        return cls(min(device_bytes, default=None), host_bytes * len(hosts))


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised host array aligned to memory pages: XLA's CPU client aliases it."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, nbytes).view(dtype).reshape(shape)
