"""Tells a server, in the background, which runs are over."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

# URL, headers, body; raises what goes wrong
Post = Callable[[str, Mapping[str, str], Mapping[str, object]], None]
_End = tuple[str, Mapping[str, str], Mapping[str, object]]


class RunEnds:
    """Posts ends of runs, in order, on a thread that lives as long as there are some.

    A server forgets a run by itself, later. So what cannot be told is dropped, and after a failure
    nothing more is told.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._ends: queue.SimpleQueue[_End] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a finalizer may interrupt its owner
        self._thread: threading.Thread | None = None
        self._has_failed = False

    def put(self, url: str, headers: Mapping[str, str], *, keeps_sessions: bool = False) -> None:
        """Tell of the end of a run; its URL is that of its progress."""
        body = {"finished": True} | ({"keep_sessions": True} if keeps_sessions else {})
        with self._lock:
            if self._has_failed:
                return
            self._ends.put((url, headers, body))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._tell, name="kvflow-run-ends", daemon=True
                )
                self._thread.start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until all ends are told."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _tell(self) -> None:
        while True:
            with self._lock:
                if self._has_failed or self._ends.empty():
                    self._thread = None
                    return
            try:
                self._post(*self._ends.get())
            except Exception as error:
                logger.info("ends of runs are not told any more: %r", error)
                self._has_failed = True
