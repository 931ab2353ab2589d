from __future__ import annotations

import anthropic
import httpx
import openai
import pytest

from kvflow_jax.serve.auth import KeyRing, cache_salt
from kvflow_jax.serve.errors import ApiError
from tests.serve.serve_fakes import live_server
from tests.serve.serve_requests import HELLO


def test_every_route_but_health_and_metrics_requires_a_key() -> None:
    with (
        live_server(api_keys=("red", "blue")) as live,
        httpx.Client(base_url=live.url) as http,
    ):
        for path in ("/health", "/ready", "/metrics"):
            assert http.get(path).status_code == 200
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/v1/models/tiny"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/responses"),
            ("POST", "/tokenize"),
            ("POST", "/detokenize"),
            ("POST", "/flush_cache"),
        ):
            answer = http.request(method, path, content=b"{")
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"

        salts = []
        for key in ("red", "blue", "red"):
            with openai.OpenAI(base_url=f"{live.url}/v1", api_key=key) as client:
                client.chat.completions.create(
                    model="tiny", messages=HELLO, extra_body={"cache_salt": "s"}
                )
            salts.append(live.engine.last.spec.salt)
        assert salts[0] == salts[2] != salts[1]
        assert "red" not in salts[0]
        with (
            openai.OpenAI(base_url=f"{live.url}/v1", api_key="green") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


@pytest.mark.parametrize(
    "header", [None, b"", b"red", b"Bearer", b"Bearer ", b"Basic red", b"Bearer re", b"Bearer \xff"]
)
def test_a_wrong_authorization_header_is_rejected(header: bytes | None) -> None:
    with pytest.raises(ApiError):
        KeyRing(["red"]).authenticate(header)


def test_a_key_may_come_as_anthropics_clients_send_it() -> None:
    keys = KeyRing(["red", "blue"])
    tenant = keys.authenticate(b"Bearer red")
    assert tenant == keys.authenticate(None, b" red ") == keys.authenticate(b"Bearer red", b"red")
    assert keys.authenticate(b"Basic x", b"red") == tenant
    for api_key in (b"", b"green"):
        with pytest.raises(ApiError) as raised:
            keys.authenticate(None, api_key)
        assert raised.value.status == 401


def test_two_different_keys_are_ambiguous() -> None:
    with pytest.raises(ApiError, match="different keys") as raised:
        KeyRing(["red", "blue"]).authenticate(b"Bearer red", b"blue")
    assert raised.value.status == 400


def test_messages_are_authenticated_in_their_dialect() -> None:
    with live_server(api_keys=("red",)) as live:
        with anthropic.Anthropic(base_url=live.url, api_key="red", max_retries=0) as client:
            message = client.messages.create(model="tiny", max_tokens=8, messages=HELLO)
            assert message.content[0].text == "Hello"
        with (
            anthropic.Anthropic(base_url=live.url, api_key="green", max_retries=0) as client,
            pytest.raises(anthropic.AuthenticationError) as raised,
        ):
            client.messages.count_tokens(model="tiny", messages=HELLO)
        assert raised.value.body["error"]["type"] == "authentication_error"


def test_a_single_key_has_no_tenants() -> None:
    assert KeyRing(["red"]).authenticate(b"bearer red") == ""
    assert KeyRing([]).authenticate(None) == ""
    assert cache_salt("", None) == ""
    assert cache_salt("", "s") == "s"
    assert cache_salt("t", "s") != cache_salt("u", "s")
