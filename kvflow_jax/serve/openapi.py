"""``/openapi.json`` and ``/docs``: the routes as they are served.

The routes parse their bodies themselves, so each says in ``openapi_extra`` what it parses.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from kvflow_jax import __version__
from kvflow_jax.serve.dependencies import check_may_read_metrics, get_admin, get_tenant
from kvflow_jax.serve.docs_page import docs_page
from kvflow_jax.serve.service import Service

routes = APIRouter()

Json = dict[str, Any]


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


_SCHEMAS = "#/components/schemas/"
_TEXT: Json = {"type": "string"}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_ERRORS: Json = {
    "Error": _object(
        error=_object(message=_TEXT, type=_TEXT, param=_TEXT_OR_NULL, code=_TEXT_OR_NULL)
    ),
    # Of Anthropic's API.
    "MessagesError": _object(type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT)),
}
# Either header has the key; see ``auth.KeyRing``.
_SECURITY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def body_of(*schemas: type[BaseModel]) -> Json:
    """Return the ``openapi_extra`` of a route whose body has one of these schemas."""
    bodies = [schema.model_json_schema(ref_template=_SCHEMAS + "{model}") for schema in schemas]
    return json_body(bodies[0] if len(bodies) == 1 else {"anyOf": bodies})


def json_body(schema: Json) -> Json:
    """Return the ``openapi_extra`` of a route whose body has this JSON Schema."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@routes.get("/openapi.json")
async def show_openapi(request: Request) -> Response:
    return JSONResponse(_document(request.app))


@routes.get("/docs", response_class=HTMLResponse)
async def show_docs(request: Request) -> Response:
    # The page needs nothing from the network.
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return HTMLResponse(docs_page(_document(request.app)), headers=policy)


def _document(app: FastAPI) -> Json:
    """Return the OpenAPI document of an application, made once."""
    if app.openapi_schema is None:
        service: Service = app.state.service
        document = get_openapi(title=app.title, version=__version__, routes=app.state.routes)
        components: Json = {"schemas": dict(_ERRORS)}
        checks: set[object] = {get_tenant, get_admin}
        if not service.config.open_metrics:
            checks.add(check_may_read_metrics)
        if service.keys.is_required:
            components["securitySchemes"] = _SECURITY_SCHEMES
        for route, operation in _operations(app, document):
            # FastAPI's error of its own checks, which no route uses.
            operation["responses"].pop("422", None)
            _describe_errors(route, operation)
            _move_schemas(operation, components["schemas"])
            if service.keys.is_required and _needs_key(route.dependant, checks):
                operation["security"] = [{name: []} for name in _SECURITY_SCHEMES]
        document["components"] = components
        app.openapi_schema = document
    return app.openapi_schema


def _operations(app: FastAPI, document: Json) -> Iterator[tuple[APIRoute, Json]]:
    for route in app.state.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                yield route, document["paths"][route.path_format][method.lower()]


def _needs_key(dependant: Dependant, checks: Collection[object]) -> bool:
    """Return whether a route, or what it depends on, depends on one of ``checks``."""
    return any(one.call in checks or _needs_key(one, checks) for one in dependant.dependencies)


def _describe_errors(route: APIRoute, operation: Json) -> None:
    name = "MessagesError" if route.path.startswith("/v1/messages") else "Error"
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + name}}}
    operation["responses"]["default"] = {"description": "An error", "content": content}


def _move_schemas(operation: Json, schemas: Json) -> None:
    """Move the schemas of a body to the components, and describe the stream that it asks for."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if not content:
        return
    schema: Json = content["schema"]
    bodies = schema.get("anyOf") or [schema]
    for i, body in enumerate(bodies):
        schemas |= body.pop("$defs", {})
        if "stream" in body["properties"]:
            operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": _TEXT}
        schemas[body["title"]] = body
        bodies[i] = {"$ref": _SCHEMAS + body["title"]}
    content["schema"] = {"anyOf": bodies} if len(bodies) > 1 else bodies[0]
