"""The server process: binding, loading, signals, draining."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import openai
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.serve.__main__ import main
from kvflow_jax.serve.auth import tenant_of_peer
from kvflow_jax.serve.key_store import KeyStore
from kvflow_jax.serve.server import TICKS_PER_S, _bind_remedy
from tests.serve.serve_fakes import TIMEOUT_S, FakeEngine, FakeTokenizer, LiveServer, live_server
from tests.serve.serve_requests import HELLO


def test_the_server_answers_while_the_model_loads() -> None:
    may_load = threading.Event()

    def build(engine: FakeEngine) -> tuple[Any, ...]:
        assert may_load.wait(TIMEOUT_S)
        return engine, FakeTokenizer(), "tiny", {}

    live = LiveServer(build)
    try:
        with httpx.Client(base_url=live.url) as http:
            assert http.get("/health").status_code == 200
            assert http.get("/metrics").status_code == 200
            assert http.get("/ready").json()["error"]["code"] == "starting"
            assert http.get("/v1/models").status_code == 503
            answer = http.post("/v1/chat/completions", json={"messages": HELLO})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
            may_load.set()
            live.wait_loaded()
            assert http.get("/ready").status_code == 200
            http.post("/v1/chat/completions", json={"messages": HELLO}).raise_for_status()
    finally:
        may_load.set()
        live.request_stop()
        live.join()
        live.engine.close()
    assert live.exit_code == 0


def test_a_failed_load_ends_the_server(caplog: pytest.LogCaptureFixture) -> None:
    def build(engine: FakeEngine) -> tuple[Any, ...]:
        raise ModelLoadError("no such model: tiny-dir")

    live = LiveServer(build)
    live.join()
    live.engine.close()
    assert live.exit_code == 1
    assert "cannot start: no such model: tiny-dir" in caplog.text


def test_a_port_in_use_is_reported_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kvflow_jax.serve.launch.build_engine", pytest.fail)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    "host",
    [
        "203.0.113.7",  # of a network for documentation, so an address of no machine
        "no such host",
    ],
)
def test_a_wrong_host_is_reported_in_one_line(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kvflow_jax.serve.launch.build_engine", pytest.fail)
    assert main(["--host", host, "--port", "0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot listen on {host}:0" in line
    assert "--host" in line
    assert "--port" not in line


def test_a_port_below_1024_is_reported_with_the_remedy() -> None:
    assert "at least 1024" in _bind_remedy(PermissionError(errno.EACCES, "Permission denied"))


def test_draining_finishes_running_requests_and_refuses_new_ones() -> None:
    live = LiveServer()
    live.wait_loaded()
    live.engine.reply = None
    try:
        with (
            httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as http,
            openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            http.get("/health")  # opens the connection used below
            answer = pool.submit(client.chat.completions.create, model="tiny", messages=HELLO)
            (request,) = live.engine.wait_for_requests(1)
            live.request_stop()
            live.engine.wait_for(lambda: live.engine.is_closed)
            refused = http.post("/v1/chat/completions", json={"messages": HELLO})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert http.get("/ready").status_code == 503
            with httpx.Client() as other:  # a load balancer opens new connections
                assert other.get(f"{live.url}/health").status_code == 200
                assert other.get(f"{live.url}/ready").status_code == 503
            live.engine.emit(request, "bye")
            live.engine.finish(request)
            assert answer.result().choices[0].message.content == "bye"
    finally:
        live.request_stop()
        live.join()
    assert live.exit_code == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_outlasts_the_drain_is_aborted_with_an_error(stream: bool) -> None:
    live = LiveServer(drain_timeout_s=0.01)
    live.wait_loaded()
    live.engine.reply = None
    with (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):

        def ask() -> None:
            answer = client.chat.completions.create(model="tiny", messages=HELLO, stream=stream)
            list(answer)

        answer = pool.submit(ask)
        (request,) = live.engine.wait_for_requests(1)
        live.engine.emit(request, "a")
        live.engine.settle()
        live.request_stop()
        with pytest.raises(openai.APIError, match="aborted this request"):
            answer.result()
    live.join()


@pytest.mark.parametrize(
    ("proxies", "client"),
    [
        ((), "127.0.0.1"),
        (("10.0.0.1",), "127.0.0.1"),
        (("127.0.0.1",), "203.0.113.9"),
        (("127.0.0.0/8", "203.0.113.0/24"), "198.51.100.7"),
    ],
)
def test_only_named_proxies_may_say_who_the_client_is(
    proxies: tuple[str, ...], client: str
) -> None:
    with (
        live_server(forwarded_allow_ips=proxies) as live,
        httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as http,
    ):
        headers = {"X-Forwarded-For": "198.51.100.7, 203.0.113.9"}
        http.post("/v1/chat/completions", json={"messages": HELLO}, headers=headers)
        assert live.engine.last.spec.tenant == tenant_of_peer(client)


PROGRAM = """
import logging, sys
sys.path.insert(0, sys.argv[1])
from tests.serve.serve_fakes import FakeEngine, FakeTokenizer
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.server import run

def build(config):
    if sys.argv[2] == "load":
        import threading
        print("loading", flush=True)
        threading.Event().wait()
    engine = FakeEngine()
    engine.reply = None
    submit, drain = engine.submit, engine.drain
    def report_submit(*args, **kw):
        print("submitted", flush=True)
        return submit(*args, **kw)
    def report_drain(timeout_s):
        print("draining", flush=True)
        for request in engine.running.values():
            if sys.argv[2] == "finish":
                engine.finish(request, text="bye")
        return drain(timeout_s)
    engine.submit, engine.drain = report_submit, report_drain
    if sys.argv[2] == "stuck":
        engine.stalled_by = engine.stuck_reason = "a step has not ended"
        engine.close = lambda: None
    return engine, FakeTokenizer(), "tiny", {}

logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
sys.exit(run(ServerConfig(port=0), build))
"""


@contextmanager
def process(mode: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parents[2]), mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield child, child.stdout
        finally:
            child.kill()


def read_until(lines: IO[str], start: str) -> str:
    for line in lines:
        if line.startswith(start):
            return line
    raise AssertionError(f"no line {start!r}")


class PlainTokenizer(FakeTokenizer):
    """That of a base model, which has no chat template."""

    chat_template = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("tokenizer", "route"),
    [
        (FakeTokenizer(), "/v1/chat/completions"),
        (PlainTokenizer(), "/v1/completions"),
        (None, "/v1/completions"),
    ],
)
def test_the_command_of_the_log_gets_an_answer(
    tokenizer: FakeTokenizer | None, route: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kvflow_jax.serve")
    live = LiveServer(lambda engine: (engine, tokenizer, "it's", {}))
    try:
        live.wait_loaded()
        # The server is ready before it says so, but says so before it answers a request.
        httpx.get(f"{live.url}/health")
        (text,) = (text for text in caplog.messages if text.startswith("ready after"))
        curl, url, *_, body = shlex.split(text.splitlines()[1])
        assert (curl, url) == ("curl", f"{live.url}{route}")
        answer = httpx.post(url, content=body, timeout=TIMEOUT_S)
        assert answer.json()["model"] == "it's"
    finally:
        live.request_stop()
        live.join()
        live.engine.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_exits_with_code_0(number: signal.Signals) -> None:
    with process("finish") as (child, lines), ThreadPoolExecutor(1) as pool:
        url = read_until(lines, "ready after").split()[-1]
        curl = next(lines)
        assert curl.startswith(f"curl {url}/v1/chat/completions")
        body = {"messages": HELLO}
        answer = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=body, timeout=20)
        read_until(lines, "submitted")
        child.send_signal(number)
        assert answer.result().json()["choices"][0]["message"]["content"] == "bye"
        assert child.wait(TIMEOUT_S) == 0


def test_a_step_that_does_not_end_ends_the_process_with_code_1() -> None:
    with process("stuck") as (child, lines):
        url = read_until(lines, "ready after").split()[-1]
        for path in ("/health", "/ready"):
            answer = httpx.get(f"{url}{path}")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "stalled"
        child.send_signal(signal.SIGTERM)
        assert child.wait(TIMEOUT_S) == 1


def test_a_second_ctrl_c_exits_immediately() -> None:
    with process("hang") as (child, lines), ThreadPoolExecutor(1) as pool:
        url = read_until(lines, "ready after").split()[-1]
        answer = pool.submit(httpx.post, f"{url}/v1/completions", json={"prompt": "a"}, timeout=20)
        read_until(lines, "submitted")
        child.send_signal(signal.SIGINT)
        read_until(lines, "draining")
        child.send_signal(signal.SIGINT)
        assert child.wait(TIMEOUT_S) == 128 + signal.SIGINT
        with pytest.raises(httpx.TransportError):
            answer.result()


def test_ctrl_c_while_loading_exits_immediately() -> None:
    with process("load") as (child, lines):
        read_until(lines, "loading")
        child.send_signal(signal.SIGINT)
        assert child.wait(TIMEOUT_S) == 0


KEY_FILE = '[[keys]]\nname = "red"\nkey = "{key}"\n'


def test_a_file_of_keys_is_read_again_when_it_changes_and_at_sighup(tmp_path: Path) -> None:
    path, new = tmp_path / "keys.toml", tmp_path / "new"
    path.write_text(KEY_FILE.format(key="old"))
    live = LiveServer(api_key_file=path)
    try:
        store = live.server.service.key_store
        new.write_text(KEY_FILE.format(key="new"))
        new.replace(path)
        asyncio.run(live.server.on_tick(TICKS_PER_S))
        assert store.ring.authenticate(b"Bearer new") == "red"
        before = store.ring
        live.server._on_hangup(signal.SIGHUP, None)
        asyncio.run(live.server.on_tick(1))
        assert store.ring is not before
    finally:
        live.request_stop()
        live.join()
        live.engine.close()


def test_a_wrong_file_of_keys_stops_the_start_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("[[keys]]\n")
    assert main(["--port", "0", "--api-key-file", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "name must be" in error


def test_keys_are_read_again_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('[[keys]]\nname = "red"\nkey = "r"\n')
    called = {name: threading.Event() for name in ("reload", "reload_if_changed")}
    on_loop = []

    def recorded(name: str) -> Callable[[KeyStore], None]:
        def call(store: KeyStore) -> None:
            with contextlib.suppress(RuntimeError):
                on_loop.append(asyncio.get_running_loop())
            called[name].set()

        return call

    for name in called:
        monkeypatch.setattr(KeyStore, name, recorded(name))
    with live_server(api_key_file=path) as live:
        assert called["reload_if_changed"].wait(TIMEOUT_S)
        live.server.must_reload_keys = True
        assert called["reload"].wait(TIMEOUT_S)
    assert not on_loop


def test_the_heap_is_trimmed_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[str] = []
    monkeypatch.setattr(
        "kvflow_jax.serve.server.trim_heap", lambda: trimmed.append(threading.current_thread().name)
    )
    with live_server() as live:
        for tick in (1, TICKS_PER_S, 60 * TICKS_PER_S):
            asyncio.run(live.server.on_tick(tick))
    assert len(trimmed) >= 1
    assert threading.current_thread().name not in trimmed
