"""Benchmark the HTTP server beside a busy engine: latency of /health and of tokens.

    python -m experiments.serve_bench --json FILE
    python -m experiments.serve_bench --quick     # tiny random model: a check of the command

One process serves: HTTP in the event loop of the main thread, the engine on its own thread. The
benchmark shows whether the engine's host work, or a device that uses all cores, starves the loop.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import httpx
import numpy as np

from experiments.bench.server_process import server_process
from experiments.make_folder import temporary_folder
from experiments.measure import arguments, positive_float, positive_int, report

FULL = ("--pool-gib", "1")  # flags of the server
# Deterministic: two batch shapes, which compile in seconds.
QUICK = ("--pool-gib=0.02", "--max-num-seqs=4", "--max-model-len=1024", "--deterministic")
TINY_VOCAB, VOCAB = range(256), range(1000, 40_000)  # token ids of prompts


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--clients", type=positive_int, help="streams at once under load; default: 16, quick 2"
    )
    parser.add_argument(
        "--seconds", type=positive_float, help="of the loaded phase; default: 20, quick 2"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, few seconds"
    )
    options = parser.parse_args()
    num_clients = options.clients or (2 if options.quick else 16)
    phase_s = options.seconds or (2.0 if options.quick else 20.0)
    with temporary_folder() if options.quick else nullcontext() as folder:
        flags = FULL if folder is None else (*QUICK, "--model", str(folder))
        vocab = VOCAB if folder is None else TINY_VOCAB
        figures = asyncio.run(measure(flags, num_clients, phase_s, vocab))
    report(figures, {"health_busy_p99_ms": "of the order of the loop's own work"}, options.json)
    return 0


async def measure(
    flags: Sequence[str], num_clients: int, phase_s: float, vocab: range
) -> dict[str, Any]:
    """Start a server, and measure it idle and under load."""
    async with (
        server_process(flags) as server,
        httpx.AsyncClient(base_url=server.url, timeout=120) as client,
    ):
        idle = await health_latencies(client, phase_s / 4)
        stop = asyncio.Event()
        gaps: list[float] = []
        rng = np.random.default_rng(0)
        streams = [
            asyncio.create_task(stream_prompts(client, stop, gaps, seed, vocab))
            for seed in rng.integers(2**31, size=num_clients).tolist()
        ]
        await asyncio.sleep(min(2.0, phase_s))
        busy = await health_latencies(client, phase_s)
        stop.set()
        await asyncio.gather(*streams)
    return {
        "num_clients": num_clients,
        **{f"health_idle_{key}": value for key, value in spread_ms(idle).items()},
        **{f"health_busy_{key}": value for key, value in spread_ms(busy).items()},
        **{f"between_chunks_{key}": value for key, value in spread_ms(gaps).items()},
    }


async def health_latencies(client: httpx.AsyncClient, seconds: float) -> list[float]:
    """Request /health for this time; return the latencies, seconds."""
    end, latencies = time.perf_counter() + seconds, []
    while time.perf_counter() < end:
        start = time.perf_counter()
        (await client.get("/health")).raise_for_status()
        latencies.append(time.perf_counter() - start)
        await asyncio.sleep(0.02)
    return latencies


async def stream_prompts(
    client: httpx.AsyncClient, stop: asyncio.Event, gaps: list[float], seed: int, vocab: range
) -> None:
    """Stream random prompts until ``stop``; append the times between chunks to ``gaps``, s."""
    rng = np.random.default_rng(seed)
    while not stop.is_set():
        body = {
            "prompt": rng.integers(vocab[0], vocab[-1], int(rng.integers(16, 600))).tolist(),
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
    """Return median, 99th percentile and maximum, milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99), "max_ms": max(seconds) * 1e3}


if __name__ == "__main__":
    raise SystemExit(main())
