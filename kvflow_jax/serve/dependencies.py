"""FastAPI dependencies of the routes: the service, and the tenant of a request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.service import Service


async def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def get_tenant(request: Request) -> str:
    """Return the tenant of a request; raise a 401 or 400 ApiError before the body is read."""
    headers = dict(request.scope["headers"])
    service: Service = request.app.state.service
    return service.keys.authenticate(
        headers.get(b"authorization"),
        headers.get(b"x-api-key"),
        None if request.client is None else request.client.host,
    )


async def get_admin(request: Request) -> str:
    """Return the tenant of a request that may act for all; raise a 401, 400 or 403 ApiError."""
    tenant = await get_tenant(request)
    service: Service = request.app.state.service
    if not service.keys.limits_of(tenant).is_admin:
        raise admin_required()
    return tenant


def admin_required() -> ApiError:
    """Return the error of a request that concerns other tenants, by a tenant that is no admin."""
    return ApiError(
        403,
        "this request concerns other tenants; it needs an admin's API key (--admin-api-key)",
        code="admin_required",
    )


async def check_may_read_metrics(request: Request) -> None:
    """Raise unless a request may read what concerns all tenants together."""
    service: Service = request.app.state.service
    if service.keys.is_required and not service.config.open_metrics:
        await get_admin(request)


ServiceDep = Annotated[Service, Depends(get_service)]
TenantDep = Annotated[str, Depends(get_tenant)]
AdminDep = Annotated[str, Depends(get_admin)]


async def get_owner(request: Request, service: ServiceDep, tenant: TenantDep) -> str:
    """Return whose state a request names: its tenant's, or for an admin that of ``?tenant=``."""
    owner = request.query_params.get("tenant")
    if owner is None or owner == tenant:
        return tenant
    if not service.keys.limits_of(tenant).is_admin:
        raise admin_required()
    return owner


OwnerDep = Annotated[str, Depends(get_owner)]
