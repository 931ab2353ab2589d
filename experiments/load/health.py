"""Latency of /health while clients load the server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from experiments.bench.serve_bench import spread_ms
from experiments.load.connections import Address

WATCH = Path(__file__).with_name("health_watch.py")


@dataclass
class Health:
    """Latencies of /health, s; None: not answered with 200."""

    latencies: list[float | None] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return their spread, milliseconds, and how many were not answered."""
        answered = [latency for latency in self.latencies if latency is not None]
        spread = {f"health_{name}": value for name, value in spread_ms(answered).items()}
        return {**spread, "health_failed": len(self.latencies) - len(answered)}


@asynccontextmanager
async def watched(address: Address) -> AsyncIterator[Health]:
    """Ask /health within the context, in a process of its own; the figures are there after it."""
    health = Health()
    watch = await asyncio.create_subprocess_exec(
        sys.executable,
        str(WATCH),
        address.host,
        str(address.port),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=1 << 24,
    )
    assert watch.stdout is not None
    await watch.stdout.readline()
    try:
        yield health
    finally:
        out, _ = await watch.communicate(b"")
        health.latencies += json.loads(out)
