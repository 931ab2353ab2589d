"""What memory is free, on devices and on the host."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def free_host_bytes() -> int:
    """Memory a new process could have, the control group's bound included."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and (bound := limit.read_text().strip()) != "max":
        free = min(free, int(bound) - int(used.read_text()))
    return max(free, 0)


def free_device_bytes(device: jax.Device) -> int | None:
    """Memory of its own that a device has left; None where it has none, or does not say."""
    stats = device.memory_stats()
    if device.platform == "cpu" or not stats or "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"] - stats["bytes_in_use"])
