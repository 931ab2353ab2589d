"""FastAPI dependencies of the routes: the service, and the tenant of a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from kvflow_jax.serve.service import Service


async def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def get_tenant(request: Request) -> str:
    """Return the tenant of a request; raise a 401 or 400 ApiError before the body is read."""
    headers = dict(request.scope["headers"])
    service: Service = request.app.state.service
    return service.keys.authenticate(headers.get(b"authorization"), headers.get(b"x-api-key"))


ServiceDep = Annotated[Service, Depends(get_service)]
TenantDep = Annotated[str, Depends(get_tenant)]
