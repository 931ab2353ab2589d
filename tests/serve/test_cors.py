"""Which web pages may call the server, and what the others are told."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.serve.serve_fakes import live_server
from tests.serve.serve_requests import CHAT, HELLO, error_of

PAGE = "https://app.example.com"


def preflight(http: httpx.Client, origin: str, method: str = "POST") -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return http.options(CHAT, headers=headers)


@pytest.fixture(scope="module")
def browser() -> Iterator[httpx.Client]:
    """A client of a server that one page may call, with a key."""
    with (
        live_server(
            allowed_origins=(PAGE,), allowed_methods=("GET", "POST"), api_keys=("secret",)
        ) as live,
        httpx.Client(base_url=live.url, timeout=20) as http,
    ):
        yield http


def test_a_preflight_needs_no_key(browser: httpx.Client) -> None:
    answer = preflight(browser, PAGE)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in answer.headers["access-control-allow-headers"]


def test_the_page_may_read_answers_and_errors(browser: httpx.Client) -> None:
    for key, status in (("secret", 200), ("wrong", 401)):
        headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
        answer = browser.post(CHAT, json={"messages": HELLO}, headers=headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


def test_another_page_is_refused_with_the_flag_to_set(browser: httpx.Client) -> None:
    error = error_of(preflight(browser, "https://evil.example"), 400)
    assert error["code"] == "cors_refused"
    assert "https://evil.example" in error["message"]
    assert "--allowed-origins" in error["message"]
    headers = {"Origin": "https://evil.example", "Authorization": "Bearer secret"}
    answer = browser.post(CHAT, json={"messages": HELLO}, headers=headers)
    assert "access-control-allow-origin" not in answer.headers


def test_a_method_that_is_not_allowed_is_named(browser: httpx.Client) -> None:
    message = error_of(preflight(browser, PAGE, "DELETE"), 400)["message"]
    assert "may not use this method" in message
    assert "--allowed-methods" in message


def test_without_the_flag_no_page_may_call(http: httpx.Client) -> None:
    assert "--allowed-origins" in error_of(preflight(http, PAGE), 400)["message"]
    # A preflight is an OPTIONS with its headers only.
    assert error_of(http.options(CHAT), 405)
