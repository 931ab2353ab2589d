"""Load of many clients on the HTTP server, honest and hostile, whether or not it keeps up.

    python -m experiments.load --json FILE
    python -m experiments.load --quick     # tiny random model: a check of the command

``streams``: 500 clients open a stream each within five seconds. ``hostile``: two streams a second,
beside clients that send bodies of 31 MiB, heads without an end, requests byte by byte, and requests
that they leave. ``aborts``: 2,000 requests, of which half are broken off. ``sessions``: two coding
sessions with prompts of 5,000 tokens, and one that is broken off and asked again. ``tenants``: a
modest tenant beside a greedy one, each with its API key. A stream is refused clearly if it gets a
429 or 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from experiments.bench.serve_bench import FULL, QUICK, TINY_VOCAB, VOCAB
from experiments.bench.server_process import server_process
from experiments.load import aborts, attacks, sessions, streams, tenants
from experiments.load.connections import Address
from experiments.make_folder import temporary_folder
from experiments.measure import arguments, positive_float, positive_int, report

SCENARIOS = ("streams", "hostile", "aborts", "sessions", "tenants")
GOALS = {
    "streams_unclear": "0",
    "streams_health_p99_ms": "at most 200",
    "hostile_unclear": "0",
    "hostile_health_failed": "0",
    "aborts_unclear": "0",
    "aborts_leased_fraction": "0",
    "aborts_threads_more": "0",
    "aborts_handles_more": "0",
    "aborts_memory_ratio": "at most 1.02",
    "sessions_unclear": "0",
    "sessions_first_token_ratio": "at most 2.2",
    "sessions_kept_share": "about 0.5: what half of the time alone computes",
    "tenants_unclear": "0",
    "tenants_first_token_ratio": "at most 1, of twice the time alone and two steps",
    "tenants_cached_share_ratio": "at least 0.9",
}
QUICK_SESSIONS = sessions.Sizes(TINY_VOCAB, num_prompt=100, num_turn=20, num_rounds=1)
QUICK_TENANTS = tenants.Sizes(
    TINY_VOCAB, num_new=40, num_prefix=256, num_rounds=1, num_requests=4, n=2, num_nodes=4
)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--only", choices=SCENARIOS, help="one scenario; default: all, one after the other"
    )
    parser.add_argument("--streams", type=positive_int, help="at once; default: 500, quick 8")
    parser.add_argument("--seconds", type=positive_float, help="of attacks; default: 20, quick 1")
    parser.add_argument("--requests", type=positive_int, help="of aborts; default: 2000, quick 44")
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: tiny model, few clients"
    )
    options = parser.parse_args()
    is_quick = options.quick
    scenarios = SCENARIOS if options.only is None else (options.only,)
    with temporary_folder() if is_quick else nullcontext() as folder:
        flags = FULL if folder is None else (*QUICK, "--model", str(folder))
        figures = asyncio.run(
            measure(
                flags,
                scenarios,
                num_streams=options.streams or (8 if is_quick else 500),
                hostile_s=options.seconds or (1.0 if is_quick else 20.0),
                num_requests=options.requests or (44 if is_quick else 2000),
                sessions_sizes=QUICK_SESSIONS if is_quick else sessions.Sizes(VOCAB),
                tenants_sizes=QUICK_TENANTS if is_quick else tenants.Sizes(VOCAB),
            )
        )
    report(figures, {name: goal for name, goal in GOALS.items() if name in figures}, options.json)
    return 1 if any(figures.get(f"{name}_unclear") for name in SCENARIOS) else 0


async def measure(
    flags: Sequence[str],
    scenarios: Sequence[str],
    *,
    num_streams: int,
    hostile_s: float,
    num_requests: int,
    sessions_sizes: sessions.Sizes,
    tenants_sizes: tenants.Sizes,
) -> dict[str, Any]:
    """Start servers with these flags, run scenarios, and return figures by scenario and name."""
    figures: dict[str, Any] = {}

    def note(scenario: str, measured: dict[str, Any]) -> None:
        figures.update({f"{scenario}_{name}": value for name, value in measured.items()})

    if set(scenarios) - {"tenants"}:
        async with server_process(flags) as server:
            address = Address.of(server.url)
            if "streams" in scenarios:
                note("streams", await streams.measure(address, num_streams))
            if "hostile" in scenarios:
                note("hostile", await attacks.measure(address, hostile_s))
            if "aborts" in scenarios:
                note("aborts", await aborts.measure(server, num_requests))
            if "sessions" in scenarios:
                note("sessions", await sessions.measure(address, sessions_sizes))
    if "tenants" in scenarios:
        with tempfile.TemporaryDirectory() as folder:
            keys = tenants.key_file(Path(folder))
            async with server_process([*flags, "--api-key-file", str(keys)]) as server:
                note("tenants", await tenants.measure(server.url, tenants_sizes))
    return figures
