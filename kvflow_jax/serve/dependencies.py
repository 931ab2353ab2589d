"""What routes ask for: the service, and who asks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from kvflow_jax.serve.service import Service


async def the_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def the_tenant(request: Request) -> str:
    """Who asks; 401 before the body is read."""
    headers = dict(request.scope["headers"])
    service: Service = request.app.state.service
    return service.keys.authenticate(headers.get(b"authorization"))


ServiceDep = Annotated[Service, Depends(the_service)]
TenantDep = Annotated[str, Depends(the_tenant)]
