"""A process that asks /health every few milliseconds, so that no other work is in its figures.

    python experiments/load/health_watch.py HOST PORT

Prints a line once it watches. When its input ends, prints a JSON list of the latencies, s; those
that were not answered with 200 are null. Without imports of the project, which would take seconds.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time

PERIOD_S = 0.01
TIMEOUT_S = 60.0


def ask(host: str, port: int) -> float | None:
    """Return the latency of /health on a connection of its own, s; None if it fails."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        is_ok = connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return time.perf_counter() - start if is_ok else None


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    latencies = [ask(host, port)]
    has_ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        has_ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    print("watching", flush=True)
    while not has_ended.wait(PERIOD_S):
        latencies.append(ask(host, port))
    print(json.dumps(latencies), flush=True)


if __name__ == "__main__":
    main()
