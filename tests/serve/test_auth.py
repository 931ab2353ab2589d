from __future__ import annotations

import anthropic
import httpx
import openai
import pytest

from kvflow_jax.serve.auth import LOCAL, ApiKey, KeyRing, tenant_of_peer
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.tenant_limits import ADMIN_LIMITS, DEFAULT_LIMITS
from tests.serve.serve_fakes import live_server
from tests.serve.serve_requests import HELLO


def ring(*texts: str) -> KeyRing:
    return KeyRing([ApiKey.of(text) for text in texts], is_required=True)


def test_every_route_but_health_requires_a_key() -> None:
    with (
        live_server(api_keys=("red", "blue")) as live,
        httpx.Client(base_url=live.url) as http,
    ):
        for path in ("/health", "/ready", "/version"):
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
            ("GET", "/metrics"),
            ("GET", "/v1/workflows"),
            ("GET", "/load"),
            ("GET", "/server_info"),
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
        ring("red").authenticate(header)


def test_a_key_may_come_as_anthropics_clients_send_it() -> None:
    keys = ring("red", "blue")
    tenant = keys.authenticate(b"Bearer red")
    assert tenant == keys.authenticate(None, b" red ") == keys.authenticate(b"Bearer red", b"red")
    assert keys.authenticate(b"Basic x", b"red") == tenant
    for api_key in (b"", b"green"):
        with pytest.raises(ApiError) as raised:
            keys.authenticate(None, api_key)
        assert raised.value.status == 401


def test_two_different_keys_are_ambiguous() -> None:
    with pytest.raises(ApiError, match="different keys") as raised:
        ring("red", "blue").authenticate(b"Bearer red", b"blue")
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


def test_each_key_has_a_cache_of_its_own_also_a_single_one() -> None:
    keys = ring("red")
    tenant = keys.authenticate(b"bearer red")
    assert tenant != LOCAL
    assert keys.cache_salt(tenant, None) != KeyRing().cache_salt(LOCAL, None)
    assert keys.cache_salt(tenant, "s") not in (keys.cache_salt("other", "s"), "s")
    # A name cannot imitate another's salt: it has no colon.
    assert keys.cache_salt("a", "b") != keys.cache_salt("ab", "")


def test_without_keys_the_peer_is_the_tenant_and_caches_are_shared() -> None:
    keys = KeyRing()
    tenants = [keys.authenticate(None, None, peer) for peer in ("10.0.0.1", "10.0.0.2")]
    assert tenants == ["10.0.0.1", "10.0.0.2"]
    assert {keys.cache_salt(tenant, "s") for tenant in [*tenants, LOCAL]} == {"s"}
    assert keys.limits_of(LOCAL) is ADMIN_LIMITS
    assert keys.limits_of("10.0.0.1") is DEFAULT_LIMITS


def test_an_admins_key_alone_is_required_of_nobody() -> None:
    keys = KeyRing([ApiKey.of("root", ADMIN_LIMITS)])
    assert keys.authenticate(b"Bearer any", b"other", "10.0.0.1") == "10.0.0.1"
    admin = keys.authenticate(b"Bearer root", b"other", "10.0.0.1")
    assert keys.limits_of(admin).is_admin


@pytest.mark.parametrize(
    ("peer", "tenant"),
    [
        (None, LOCAL),
        ("127.0.0.1", LOCAL),
        ("127.8.8.8", LOCAL),
        ("::1", LOCAL),
        ("::ffff:127.0.0.1", LOCAL),
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_is_a_tenant_and_a_network_of_ipv6_one(peer: str | None, tenant: str) -> None:
    assert tenant_of_peer(peer) == tenant
