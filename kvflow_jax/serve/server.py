"""The server process: binding of the port, loading in the background, signals, draining."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from kvflow_jax.errors import ConfigError, KVFlowError
from kvflow_jax.runtime.heap import trim_heap
from kvflow_jax.serve.app import create_app
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.connections import ConnectionTable
from kvflow_jax.serve.http_protocol import HttpProtocol
from kvflow_jax.serve.protocols import BuiltEngine
from kvflow_jax.serve.service import Service

logger = logging.getLogger("kvflow_jax.serve")

BACKLOG = 2048
# Clients keep idle connections for up to 60 s. The client should close first; otherwise it
# sometimes writes into a connection that the server has just closed.
KEEP_ALIVE_S = 75
# Time for slow clients to read the remaining output after the engine has drained.
FLUSH_TIMEOUT_S = 5
TICKS_PER_S = 10  # of uvicorn's loop
TRIM_PERIOD_S = 60
# Files that a process opens beside connections: weights, programs, its log.
OTHER_FILES = 512

EngineBuilder = Callable[[ServerConfig], BuiltEngine]


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; called before anything expensive.

    Raises:
        OSError: the port is in use, or the host is not an address of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it: a peer that has vanished without a word is noticed.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.bind(address)
        # On Linux two sockets may be bound to one port until one of them listens.
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class Server(uvicorn.Server):
    """A uvicorn server that answers while the model loads, and drains before it closes.

    Args:
        config: the server's settings.
        listener: from ``bind``; closed at the end.
        build: builds the engine; runs on its own thread.
    """

    def __init__(self, config: ServerConfig, listener: socket.socket, build: EngineBuilder) -> None:
        self.service = Service(config)
        self.exit_code = 0
        self.is_loading = True
        self.must_reload_keys = False
        self._settings = config
        self._listener = listener
        self._build = build
        self.connections = ConnectionTable(config.max_connections, config.client_timeout_s)
        super().__init__(
            uvicorn.Config(
                create_app(self.service),
                http=cast(type[asyncio.Protocol], partial(HttpProtocol, self.connections)),
                log_config=None,  # the CLI configures logging
                access_log=config.log_level == "debug",
                lifespan="off",
                ws="none",
                server_header=False,
                # By default uvicorn believes every process of this machine.
                proxy_headers=bool(config.forwarded_allow_ips),
                forwarded_allow_ips=list(config.forwarded_allow_ips),
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=FLUSH_TIMEOUT_S,
            )
        )

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def serve_until_stopped(self) -> int:
        """Run until a signal or a failed load; return the exit code of the process."""
        try:
            self.run(sockets=[self._listener])
        finally:
            self.service.close()
        return self.exit_code

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        # A daemon thread: loading cannot be interrupted, and must not delay process exit.
        threading.Thread(target=self._load, args=[loop], name="load", daemon=True).start()
        logger.info("listening on %s, loading %s", self.url, self._settings.load.model)

    async def on_tick(self, counter: int) -> bool:
        self.service.fail_if_engine_died()
        if counter % TICKS_PER_S == 0:
            self.connections.close_late(asyncio.get_running_loop().time())
        if counter % (TRIM_PERIOD_S * TICKS_PER_S) == 0 and self.service.is_ready:
            await asyncio.to_thread(trim_heap)
        if self._settings.api_key_file is not None:
            keys, must_reload = self.service.key_store, self.must_reload_keys
            self.must_reload_keys = False
            # On a thread: thousands of keys take seconds.
            if must_reload:
                await asyncio.to_thread(keys.reload)
            elif counter % TICKS_PER_S == 0:
                await asyncio.to_thread(keys.reload_if_changed)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # The socket still listens while draining: new requests and readiness checks get 503.
        timeout_s = self._settings.drain_timeout_s
        was_ready = self.service.is_ready
        if was_ready:
            logger.info("draining for up to %g s; press Ctrl-C again to exit now", timeout_s)
        if not await self.service.drain(timeout_s):
            logger.warning("aborted the requests still running after %g s", timeout_s)
        logger.info("drained; stopping" if was_ready else "stopping")
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM within the context.

        Uvicorn's own method raises the signal again after draining; here a drained server exits
        with code 0.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self.handle_exit) for number in signals}
        if self._settings.api_key_file is not None:
            previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_hangup)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A second Ctrl-C exits without clean-up.
        if self.should_exit and sig == signal.SIGINT:
            os._exit(128 + sig)
        self.should_exit = True

    def _on_hangup(self, sig: int, frame: FrameType | None) -> None:
        self.must_reload_keys = True  # by the next tick

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        """Build the engine, and report the result to the loop; runs on the load thread."""
        started_s = time.monotonic()
        try:
            built = self._build(self._settings)
        except BaseException as error:
            self._call_on_loop(loop, self._on_load_failed, error)
        else:
            self._call_on_loop(loop, self._on_loaded, built, time.monotonic() - started_s)

    def _call_on_loop(
        self, loop: asyncio.AbstractEventLoop, action: Callable[..., None], *args: object
    ) -> None:
        try:
            loop.call_soon_threadsafe(action, *args)
        except RuntimeError:
            # A closed loop means that the server was stopped while loading.
            if not loop.is_closed():
                raise

    def _on_loaded(self, built: BuiltEngine, load_s: float) -> None:
        self.is_loading = False
        self.service.start(*built)
        if self.service.is_ready:
            logger.info("ready after %.1f s: %s\n%s", load_s, self.url, self._curl_command())

    def _on_load_failed(self, error: BaseException) -> None:
        self.is_loading = False
        # The message of a KVFlowError names the remedy; a traceback would hide it.
        if isinstance(error, KVFlowError):
            logger.error("cannot start: %s", error)
        else:
            logger.error("cannot start", exc_info=error)
        self.exit_code = 1
        self.should_exit = True

    def _curl_command(self) -> str:
        """Return a command that asks the model: in a chat, if it has a chat template."""
        tokenizer = self.service.tokenizer
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}]}
        route = "/v1/chat/completions"
        if tokenizer is None or tokenizer.chat_template is None:
            asked = {"prompt": "Hello!" if tokenizer is not None else [1, 2, 3]}
            route = "/v1/completions"
        body = {"model": self.service.model_name, **asked, "max_tokens": 32, "temperature": 0}
        key = " -H 'Authorization: Bearer <key>'" if self.service.keys.is_required else ""
        return (
            f"curl {self.url}{route}{key} -H 'Content-Type: application/json' "
            f"-d {shlex.quote(json.dumps(body))}"
        )


def _raise_file_limit(num_files: int) -> None:
    """Let this process open as many files, if the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bind_remedy(error: OSError) -> str:
    """Return what to do about an error of ``bind``."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return (
            "choose a --host that is an address of this machine: 127.0.0.1 for clients on it, "
            "0.0.0.0 for others too"
        )
    if error.errno == errno.EACCES:
        return "choose a --port of at least 1024"
    return "choose another --port, or 0 for any free one"


def run(config: ServerConfig, build: EngineBuilder) -> int:
    """Serve until stopped.

    Returns:
        exit code: 0 after draining; 1 if the address is not free, the model cannot be loaded, or a
            step of the engine does not end; 2 if the file of API keys cannot be used.
    """
    try:
        listener = bind(config.host, config.port)
    except OSError as error:
        address = f"{config.host}:{config.port}"
        print(
            f"kvflow-serve: cannot listen on {address}: {error.strerror}; {_bind_remedy(error)}",
            file=sys.stderr,
        )
        return 1
    _raise_file_limit(config.max_connections + OTHER_FILES)
    try:
        server = Server(config, listener, build)
    except ConfigError as error:
        listener.close()
        print(f"kvflow-serve: {error}", file=sys.stderr)
        return 2
    code = server.serve_until_stopped()
    if server.service.is_engine_alive:  # its step does not end
        code = code or 1
    if server.is_loading or server.service.is_engine_alive:
        # A thread inside XLA, that loads or whose step does not end, can make interpreter shutdown
        # crash or hang.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code
