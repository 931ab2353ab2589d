"""What a web page can send to the server through a browser, and under which names."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from kvflow_jax.serve.web_pages import is_loopback
from tests.serve.serve_fakes import TIMEOUT_S, FakeEngine, LiveServer, live_server
from tests.serve.serve_requests import CHAT, HELLO, error_of

EVIL = "http://evil.example"
FORM = {"Content-Type": "text/plain", "Origin": EVIL, "Sec-Fetch-Site": "cross-site"}
REBOUND = {"Host": "evil.example:80", "Origin": f"{EVIL}:80", "Sec-Fetch-Site": "same-origin"}


@contextmanager
def client_of(**settings: Any) -> Iterator[httpx.Client]:
    with live_server(**settings) as live, httpx.Client(base_url=live.url, timeout=20) as http:
        yield http


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (FORM, "origin_refused"),
        ({"Origin": "null"}, "origin_refused"),
        ({"Origin": "http://localhost:3000"}, "origin_refused"),
        # Some extensions for privacy remove the origin.
        ({"Sec-Fetch-Site": "cross-site"}, "origin_refused"),
        (REBOUND, "host_refused"),
        ({"Host": "evil.example."}, "host_refused"),
        ({"Host": "127.0.0.1.evil.example"}, "host_refused"),
        ({"Host": "localhost.evil.example"}, "host_refused"),
        ({"Host": "x" * 1000}, "host_refused"),
        ({"Host": ""}, "host_refused"),
    ],
)
def test_a_page_of_another_site_is_refused(
    http: httpx.Client, engine: FakeEngine, headers: dict[str, str], code: str
) -> None:
    body = b'{"messages": [{"role": "user", "content": "hi"}]}'
    for path, content in ((CHAT, body), ("/flush_cache", b""), ("/abort_request", body)):
        error = error_of(http.post(path, content=content, headers=headers), 403)
        assert error["code"] == code
        assert "--allowed-" in error["message"]
    assert error_of(http.delete("/v1/workflows/g", headers=headers), 403)["code"] == code
    assert not engine.requests


def test_under_a_foreign_name_nothing_is_read(http: httpx.Client) -> None:
    for path in ("/v1/models", "/metrics", "/health", "/docs"):
        assert error_of(http.get(path, headers=REBOUND), 403)["code"] == "host_refused"
    assert error_of(http.options(CHAT, headers=REBOUND), 403)["code"] == "host_refused"


def test_a_link_of_another_site_is_followed(http: httpx.Client) -> None:
    assert http.get("/docs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "192.168.0.7:8000", "localhost."],
)
def test_the_servers_own_names_are_accepted(http: httpx.Client, host: str) -> None:
    for headers in ({}, {"Origin": f"http://{host}"}, {"Sec-Fetch-Site": "same-origin"}):
        answer = http.post(CHAT, json={"messages": HELLO}, headers={"Host": host, **headers})
        assert answer.status_code == 200


def test_two_names_are_none(live: LiveServer) -> None:
    with socket.create_connection(live.address, TIMEOUT_S) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 400")


def test_allowed_hosts_are_accepted_beside_the_servers_own() -> None:
    with client_of(allowed_hosts=("llm.example.com",)) as http:
        for host in ("llm.example.com", "LLM.example.com:443", "127.0.0.1"):
            headers = {"Host": host, "Origin": f"https://{host}"}
            assert http.post("/flush_cache", headers=headers).status_code == 200
        assert error_of(http.get("/health", headers={"Host": "other.example.com"}), 403)
    with client_of(allowed_hosts=("*",)) as http:
        assert http.get("/health", headers={"Host": "any.example"}).status_code == 200


def test_on_a_network_any_name_is_accepted_but_no_page_under_it() -> None:
    with client_of(host="0.0.0.0") as http:
        host = {"Host": "gpu-7.lan:8000"}
        assert http.post("/flush_cache", headers=host).status_code == 200
        assert error_of(http.post("/flush_cache", headers=FORM), 403)
        assert error_of(http.post("/flush_cache", headers=REBOUND), 403)["code"] == "origin_refused"
    with client_of(host="0.0.0.0", allowed_hosts=("gpu-7.lan",)) as http:
        page = {"Host": "gpu-7.lan:8000", "Origin": "http://gpu-7.lan:8000"}
        assert http.post("/flush_cache", headers=page).status_code == 200
        assert error_of(http.post("/flush_cache", headers=REBOUND), 403)["code"] == "host_refused"


@pytest.mark.parametrize("origins", [("https://app.example.com",), ("*",)])
def test_an_allowed_page_may_call(origins: tuple[str, ...]) -> None:
    page = {"Origin": "https://app.example.com", "Sec-Fetch-Site": "cross-site"}
    with client_of(allowed_origins=origins) as http:
        answer = http.post(CHAT, json={"messages": HELLO}, headers=page)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in (page["Origin"], "*")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.0.7", False), ("gpu-7.lan", False),
    ],
)  # fmt: skip
def test_addresses_of_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
