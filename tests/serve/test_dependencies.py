from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import Request
from starlette.types import Message

from kvflow_jax.serve.app import create_app
from kvflow_jax.serve.auth import LOCAL
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.dependencies import (
    check_may_read_metrics,
    get_admin,
    get_service,
    get_tenant,
)
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.service import Service


async def unread_body() -> Message:
    raise AssertionError("the body must not be read")


def request_to(service: Service, *headers: tuple[bytes, bytes], peer: str = "127.0.0.1") -> Request:
    scope = {"type": "http", "app": create_app(service), "headers": list(headers)}
    scope["client"] = (peer, 1234)
    return Request(scope, unread_body)


@pytest.fixture
def service() -> Service:
    return Service(ServerConfig(api_keys=("red", "blue"), admin_api_keys=("root",)))


def test_routes_get_the_service_of_their_app(service: Service) -> None:
    assert asyncio.run(get_service(request_to(service))) is service


def test_the_tenant_follows_from_the_authorization_header(service: Service) -> None:
    tenants = [
        asyncio.run(get_tenant(request_to(service, (b"authorization", b"Bearer " + key))))
        for key in (b"red", b"blue", b"red")
    ]
    assert tenants[0] == tenants[2] != tenants[1]


def test_a_request_without_a_key_is_rejected_before_its_body_is_read(service: Service) -> None:
    with pytest.raises(ApiError, match="API key is required") as error:
        asyncio.run(get_tenant(request_to(service)))
    assert error.value.status == 401


def bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", f"Bearer {key}".encode()


@pytest.mark.parametrize("check", [get_admin, check_may_read_metrics])
def test_what_concerns_all_tenants_needs_an_admins_key(service: Service, check: Any) -> None:
    with pytest.raises(ApiError) as error:
        asyncio.run(check(request_to(service, bearer("red"))))
    assert (error.value.status, error.value.code) == (403, "admin_required")
    with pytest.raises(ApiError) as error:
        asyncio.run(check(request_to(service)))
    assert error.value.status == 401
    asyncio.run(check(request_to(service, bearer("root"))))


def test_open_metrics_need_no_key() -> None:
    service = Service(ServerConfig(api_keys=("red", "blue"), open_metrics=True))
    asyncio.run(check_may_read_metrics(request_to(service)))


def test_the_holder_of_the_only_key_is_an_admin() -> None:
    service = Service(ServerConfig(api_keys=("red",)))
    asyncio.run(get_admin(request_to(service, bearer("red"))))


def test_without_keys_this_machine_is_an_admin_and_no_other_is() -> None:
    service = Service(ServerConfig())
    assert asyncio.run(get_admin(request_to(service))) == LOCAL
    with pytest.raises(ApiError, match="other tenants"):
        asyncio.run(get_admin(request_to(service, peer="192.0.2.1")))
    asyncio.run(check_may_read_metrics(request_to(service, peer="192.0.2.1")))
