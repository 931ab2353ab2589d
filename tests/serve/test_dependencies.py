from __future__ import annotations

import asyncio

import pytest
from fastapi import Request
from starlette.types import Message

from kvflow_jax.serve.app import create_app
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.dependencies import get_service, get_tenant
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.service import Service


async def unread_body() -> Message:
    raise AssertionError("the body must not be read")


def request_to(service: Service, *headers: tuple[bytes, bytes]) -> Request:
    scope = {"type": "http", "app": create_app(service), "headers": list(headers)}
    return Request(scope, unread_body)


@pytest.fixture
def service() -> Service:
    return Service(ServerConfig(api_keys=("red", "blue")))


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
