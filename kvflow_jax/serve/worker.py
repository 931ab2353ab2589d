"""A process that shares the model of another, which serves."""

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
from kvflow_jax.serve.launch import engine_config, load, shared_settings

if TYPE_CHECKING:
    from kvflow_jax.distributed.process_group import Follower

log = logging.getLogger("kvflow_jax.serve")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def follow(config: ServerConfig, process_info: ProcessInfo) -> int:
    """Join the others and do what process 0 does, until it ends.

    Returns:
        exit code: 0 after process 0 has drained; 1 where this one could not join. One whose group
        breaks ends at once.
    """
    process = _Process(config, process_info)
    before = {number: signal.signal(number, process.handle_exit) for number in _SIGNALS}
    # On a thread, so that signals are heard whatever the devices wait for.
    thread = threading.Thread(target=process.run, name="kvflow-follow", daemon=True)
    thread.start()
    thread.join()
    for number, handler in before.items():
        signal.signal(number, handler)
    return process.exit_code


class _Process:
    def __init__(self, config: ServerConfig, process_info: ProcessInfo) -> None:
        self.exit_code = 1
        self._config, self._place = config, process_info
        self._follower: Follower | None = None
        self._is_told = False

    def run(self) -> None:
        from kvflow_jax.api.launch import run_follower
        from kvflow_jax.distributed.messages import Failed
        from kvflow_jax.distributed.process_group import exit_now
        from kvflow_jax.distributed.rendezvous import join_leader

        config = self._config
        try:
            self._follower = join_leader(self._place, shared_settings(config), config.join_timeout_s)
        except KVFlowError as error:
            log.error("cannot start: %s", error)
            return
        try:
            loaded = load(config, group=self._follower, progress=False)
            run_follower(loaded, engine_config(config), self._follower)
        except Exception as error:
            if not isinstance(error, KVFlowError):  # its message says what to do
                log.exception("cannot go on")
            with contextlib.suppress(OSError):
                self._follower.send(Failed(str(error)))
            exit_now(f"cannot go on: {error}")
        log.info("process 0 has ended; stopping")
        self.exit_code = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Process 0 drains for all; whoever asks twice wants no clean-up."""
        if self._is_told or self._follower is None:
            os._exit(128 + sig)
        self._is_told = True
        log.info("process 0 drains, then all end; Ctrl-C again ends this one now")
        with contextlib.suppress(OSError):
            self._follower.request_shutdown()
