"""Where the outputs of one request go."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvflow_jax.requests.outputs import Output


class OutputChannel:
    """Calls ``on_output`` with the outputs of a request, in order and up to the last one.

    The engine's thread delivers them. If it hangs, another thread delivers an error as the last
    one, and what the engine delivers later is dropped.
    """

    def __init__(self, on_output: Callable[[Output], None]) -> None:
        self._on_output = on_output
        self._lock = threading.RLock()
        self._has_ended = False

    def deliver(self, output: Output, timeout_s: float = -1) -> bool:
        """Deliver an output; return True if it is the last one.

        Args:
            timeout_s: how long to wait for another thread that is delivering; -1: until it is done.
        """
        if not self._lock.acquire(timeout=timeout_s):
            return False
        try:
            if self._has_ended:
                return False
            self._has_ended = output.finish_reason is not None
            self._on_output(output)
            return self._has_ended
        finally:
            self._lock.release()
