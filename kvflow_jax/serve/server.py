"""The process: port first, then the model; signals; draining."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from kvflow_jax.errors import KVFlowError
from kvflow_jax.serve.app import create_app
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.protocols import Engine, Tokenizer
from kvflow_jax.serve.service import Service

logger = logging.getLogger("kvflow_jax.serve")

BACKLOG = 2048
# Clients keep idle connections for 60 s or less; the side that closes first should be theirs, or
# they write into a closed connection now and then.
KEEP_ALIVE_S = 75
# After the engine has drained, the time for slow readers to take what is already generated.
LAST_BYTES_S = 5

Built = tuple[Engine, Tokenizer | None, str]
Build = Callable[[ServerConfig], Built]


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, before anything expensive is done.

    Raises:
        OSError: the port is taken, or the host is not ours.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # On Linux two sockets may be bound to one port until one of them listens.
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class Server(uvicorn.Server):
    """Uvicorn that loads a model while it already answers, and drains before it closes.

    Args:
        config: the server's settings.
        listener: from ``bind``; closed at the end.
        build: makes the engine; runs on a thread of its own.
    """

    def __init__(self, config: ServerConfig, listener: socket.socket, build: Build) -> None:
        self.service = Service(config)
        self.exit_code = 0
        self.is_loading = True
        self._settings = config
        self._listener = listener
        self._build = build
        super().__init__(
            uvicorn.Config(
                create_app(self.service),
                log_config=None,  # the CLI has set up logging
                access_log=config.log_level == "debug",
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_BYTES_S,
            )
        )

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def serve_until_stopped(self) -> int:
        """Run until a signal or a failed load; the process's exit code."""
        try:
            self.run(sockets=[self._listener])
        finally:
            self.service.close()
        return self.exit_code

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        # A daemon: a load cannot be interrupted, and must not hold up the end of the process.
        threading.Thread(target=self._load, args=[loop], name="load", daemon=True).start()
        logger.info("listening on %s, loading %s", self.url, self._settings.model)

    async def on_tick(self, counter: int) -> bool:
        self.service.fail_if_engine_died()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Still listening: whoever asks meanwhile, a load balancer too, is told 503.
        timeout_s = self._settings.drain_timeout_s
        was_ready = self.service.is_ready
        if was_ready:
            logger.info("draining: running requests get up to %g s; Ctrl-C ends now", timeout_s)
        if not await self.service.drain(timeout_s):
            logger.warning("cut off requests that still ran after %g s", timeout_s)
        logger.info("drained; stopping" if was_ready else "stopping")
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        """Uvicorn's would raise the signal again after draining; a drained server has ended well
        and exits with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            os._exit(128 + sig)  # whoever asks twice wants no clean-up
        self.should_exit = True

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the load thread."""
        started_s = time.monotonic()
        try:
            built = self._build(self._settings)
        except BaseException as error:
            self._tell(loop, self._load_failed, error)
        else:
            self._tell(loop, self._loaded, built, time.monotonic() - started_s)

    def _tell(
        self, loop: asyncio.AbstractEventLoop, action: Callable[..., None], *args: object
    ) -> None:
        try:
            loop.call_soon_threadsafe(action, *args)
        except RuntimeError:
            if not loop.is_closed():  # else: stopped while loading
                raise

    def _loaded(self, built: Built, seconds: float) -> None:
        self.is_loading = False
        self.service.start(*built)
        if self.service.is_ready:
            logger.info("ready after %.1f s: %s\n%s", seconds, self.url, self._curl_line())

    def _load_failed(self, error: BaseException) -> None:
        self.is_loading = False
        if isinstance(error, KVFlowError):  # its message says what to do
            logger.error("cannot start: %s", error)
        else:
            logger.error("cannot start", exc_info=error)
        self.exit_code = 1
        self.should_exit = True

    def _curl_line(self) -> str:
        body = {
            "model": self.service.model_name,
            "messages": [{"role": "user", "content": "Hello!"}],
            "max_tokens": 32,
            "temperature": 0,
        }
        key = " -H 'Authorization: Bearer <key>'" if self._settings.api_keys else ""
        return (
            f"curl {self.url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
            f"-d '{json.dumps(body)}'"
        )


def run(config: ServerConfig, build: Build) -> int:
    """Serve until stopped.

    Returns:
        exit code: 0 after draining; 1 where the port is taken or the model cannot be loaded.
    """
    try:
        listener = bind(config.host, config.port)
    except OSError as error:
        where = f"{config.host}:{config.port}"
        print(
            f"kvflow-serve: cannot listen on {where}: {error.strerror}; choose another --port",
            file=sys.stderr,
        )
        return 1
    server = Server(config, listener, build)
    code = server.serve_until_stopped()
    if server.is_loading:
        # The load thread is deep in XLA; ending the interpreter under it can crash or hang.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code
