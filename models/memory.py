"""What memory is free, on devices and on the host; and host memory that a device can use."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np


def free_host_bytes() -> int:
    """Bytes a new process could have, the control group's bound included."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (
        bound := (group / "memory.max").read_text().strip()
    ) != "max":
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files that were read count as used, and make room when it is wanted.
        cached = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        free = min(free, int(bound) - used + cached)
    return max(free, 0)


def free_device_bytes(device: jax.Device) -> int | None:
    """Bytes of its own that a device has left; None where it has none, or does not say."""
    stats = device.memory_stats()
    if device.platform == "cpu" or not stats or "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"] - stats["bytes_in_use"])


@dataclass(frozen=True)
class FreeMemory:
    """What a model and its cache may use.

    Attributes:
        device_bytes: of each device; None where devices have none of their own.
        host_bytes: of all hosts together.
    """

    device_bytes: int | None
    host_bytes: int

    @classmethod
    def of(cls, device: jax.Device) -> FreeMemory:
        """What there is now, on a device like the others and on this host."""
        return cls(free_device_bytes(device), free_host_bytes())

    @classmethod
    def of_all(cls, hosts: Sequence[FreeMemory]) -> FreeMemory:
        """Of several hosts whose devices share a model in equal parts: the least counts."""
        on_devices = [host.device_bytes for host in hosts if host.device_bytes is not None]
        least = min(host.host_bytes for host in hosts)
        return cls(min(on_devices, default=None), least * len(hosts))


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Host memory of its own, aligned to pages: XLA's CPU client uses it in place."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, nbytes).view(dtype).reshape(shape)
