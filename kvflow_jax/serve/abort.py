"""``/abort_request``: ends a request of the same tenant early, as SGLang has it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.dependencies import ServiceDep, TenantDep
from kvflow_jax.serve.openapi import body_of

routes = APIRouter()


class AbortRequest(BaseModel):
    """Body of ``POST /abort_request``."""

    model_config = ConfigDict(extra="allow", strict=True)

    rid: str | None = None
    abort_all: bool | None = None


@routes.post("/abort_request", openapi_extra=body_of(AbortRequest))
async def abort_request(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    body = await service.bodies.parse(request, tenant, AbortRequest)
    if not body.rid and not body.abort_all:
        raise InvalidRequestError("send the rid of a request, or abort_all: true", param="rid")
    # A request that has just ended is no error: its caller cannot know.
    num_aborted = service.abort(tenant, None if body.abort_all else body.rid)
    return JSONResponse({"num_aborted": num_aborted})
