"""The HTTP side beside a busy engine: latency of /health and of tokens, idle and under load.

    python -m experiments.serve_bench --json FILE

One process serves: HTTP on the main thread's loop, the engine on a thread of its own. The
question is whether the engine's host work or the device's use of all cores starves the loop.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from experiments.measure import arguments, report

PORT = 8765
URL = f"http://127.0.0.1:{PORT}"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16, help="streams at once under load")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each phase")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.clients, options.seconds))
    report(figures, {"health_busy_p99_ms": "of the order of the loop's own work"}, options.json)


async def measure(num_clients: int, phase_s: float) -> dict[str, Any]:
    async with server(), httpx.AsyncClient(base_url=URL, timeout=120) as client:
        idle = await health_latencies(client, phase_s / 4)
        stop = asyncio.Event()
        gaps: list[float] = []
        rng = np.random.default_rng(0)
        streams = [
            asyncio.create_task(keep_streaming(client, stop, gaps, int(rng.integers(2**31))))
            for _ in range(num_clients)
        ]
        await asyncio.sleep(2)
        busy = await health_latencies(client, phase_s)
        stop.set()
        await asyncio.gather(*streams)
    return {
        "num_clients": num_clients,
        **{f"health_idle_{key}": value for key, value in spread_ms(idle).items()},
        **{f"health_busy_{key}": value for key, value in spread_ms(busy).items()},
        **{f"between_chunks_{key}": value for key, value in spread_ms(gaps).items()},
    }


@asynccontextmanager
async def server() -> AsyncIterator[None]:
    """A server process, ready; ended by Ctrl-C, which drains it."""
    command = [sys.executable, "-m", "kvflow_jax.serve", "--port", str(PORT), "--pool-gib", "1"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        async with httpx.AsyncClient(base_url=URL) as client:
            while True:
                if process.poll() is not None:
                    raise SystemExit("the server did not start")
                try:
                    if (await client.get("/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass  # not listening yet
                await asyncio.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


async def health_latencies(client: httpx.AsyncClient, seconds: float) -> list[float]:
    end, latencies = time.perf_counter() + seconds, []
    while time.perf_counter() < end:
        start = time.perf_counter()
        (await client.get("/health")).raise_for_status()
        latencies.append(time.perf_counter() - start)
        await asyncio.sleep(0.02)
    return latencies


async def keep_streaming(
    client: httpx.AsyncClient, stop: asyncio.Event, gaps: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    while not stop.is_set():
        body = {
            "prompt": rng.integers(1000, 40_000, int(rng.integers(16, 600))).tolist(),
            "max_tokens": 64,
            "ignore_eos": True,
            "stream": True,
        }
        last = None
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    json.loads(line[6:])
                    now = time.perf_counter()
                    if last is not None:
                        gaps.append(now - last)
                    last = now


def spread_ms(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": max(seconds) * 1e3}


if __name__ == "__main__":
    main()
