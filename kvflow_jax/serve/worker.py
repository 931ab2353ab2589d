"""A worker process: a follower that shares the model of process 0, which serves HTTP."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.errors import KVFlowError
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.launch import load, shared_settings

if TYPE_CHECKING:
    from kvflow_jax.distributed.process_group import Follower

log = logging.getLogger("kvflow_jax.serve")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_S = 0.1


def run_worker(config: ServerConfig, process_info: ProcessInfo) -> int:
    """Join the group and repeat the steps of process 0 until it ends.

    A worker whose group breaks exits immediately.

    Returns:
        exit code: 0 after process 0 has drained; 1 if this process could not join.
    """
    worker = _Worker(config, process_info)
    previous = {number: signal.signal(number, worker.handle_exit) for number in _SIGNALS}
    # On its own thread, so that the main thread handles signals even while the devices block.
    thread = threading.Thread(target=worker.run, name="kvflow-follow", daemon=True)
    thread.start()
    # A signal that arrives between Python's check for signals and the blocking wait does not
    # interrupt the wait, so the join has a timeout.
    while thread.is_alive():
        thread.join(_POLL_S)
    for number, handler in previous.items():
        signal.signal(number, handler)
    return worker.exit_code


class _Worker:
    def __init__(self, config: ServerConfig, process_info: ProcessInfo) -> None:
        self.exit_code = 1
        self._config, self._process_info = config, process_info
        self._follower: Follower | None = None
        self._is_stopping = False

    def run(self) -> None:
        from kvflow_jax.api.launch import cache_of_start, run_follower
        from kvflow_jax.distributed.messages import Failed
        from kvflow_jax.distributed.process_group import exit_now
        from kvflow_jax.distributed.rendezvous import join_leader

        config = self._config
        try:
            self._follower = join_leader(
                self._process_info, shared_settings(config), config.processes.join_timeout_s
            )
        except KVFlowError as error:
            log.error("cannot start: %s", error)
            return
        try:
            with contextlib.ExitStack() as start:
                start.enter_context(cache_of_start(config.load))
                loaded = load(config, group=self._follower, progress=False)
                run_follower(loaded, config.engine, self._follower, start.close)
        except Exception as error:
            # The message of a KVFlowError names the remedy; a traceback would hide it.
            if not isinstance(error, KVFlowError):
                log.exception("cannot continue")
            with contextlib.suppress(OSError):
                self._follower.send(Failed(str(error)))
            exit_now(f"cannot continue: {error}")
        log.info("process 0 has ended; stopping")
        self.exit_code = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ask process 0 to drain the whole group; exit without clean-up on a second signal."""
        if self._is_stopping or self._follower is None:
            os._exit(128 + sig)
        self._is_stopping = True
        log.info("process 0 drains, then all processes exit; press Ctrl-C again to exit now")
        with contextlib.suppress(OSError):
            self._follower.request_shutdown()
