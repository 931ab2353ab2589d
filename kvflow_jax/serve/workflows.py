"""``/v1/workflows``: registration of Agent Step Graphs, and progress reports of runs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.dependencies import OwnerDep, ServiceDep, TenantDep
from kvflow_jax.serve.disconnect import until_disconnect
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.graph_registry import GraphKey
from kvflow_jax.serve.large_json import dump
from kvflow_jax.serve.openapi import body_of, json_body
from kvflow_jax.serve.protocols import EngineClient
from kvflow_jax.serve.service import Service
from kvflow_jax.workflow.graph_warnings import warnings_of
from kvflow_jax.workflow.hints import MAX_ID_LEN
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import Workflow

routes = APIRouter()

MAX_ADVANCED = 256  # agents per report, since each may take a search of the whole graph

Agents = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_ID_LEN)]], Field(max_length=MAX_ADVANCED)
]


# The JSON form of a graph; ``Workflow.from_dict`` checks it.
GRAPH_SCHEMA: dict[str, Any] = {
    "title": "StepGraph",
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "nodes": {
            "type": "array",
            "items": {"anyOf": [{"type": "string"}, {"type": "object", "required": ["id"]}]},
            "description": "agents by name, or {id, agent}",
        },
        "entries": {"type": "array", "items": {"type": "string"}},
        "edges": {
            "type": "array",
            "items": {"type": "object", "required": ["source", "target"]},
            "description": "{source, target, conditional, probability}",
        },
        "joins": {
            "type": "array",
            "items": {"type": "object", "required": ["target"]},
            "description": "{sources, target, mode: all or any}",
        },
    },
}


class AdvanceRequest(BaseModel):
    """Body of ``POST /v1/workflows/{workflow_id}/advance``."""

    model_config = ConfigDict(extra="allow", strict=True)

    completed: Agents | None = None  # in order of completion
    running: Agents | None = None  # an agent appears once per call
    finished: bool | None = None
    keep_sessions: bool | None = None  # of a finished run: later runs continue them


@routes.put("/v1/workflows/{graph_id:path}", openapi_extra=json_body(GRAPH_SCHEMA))
async def register_graph(
    graph_id: str, request: Request, service: ServiceDep, tenant: TenantDep
) -> Response:
    service.check_ready()
    _check_id(graph_id)
    data = await service.bodies.read(request, tenant, dict)
    reading = service.run_in_thread(tenant, lambda: _read_graph(data))
    graph, text, warnings = await until_disconnect(request.receive, reading)
    registry = service.graph_registry
    async with registry.lock:
        _check_num_graphs(service, tenant, graph_id)
        await service.call_engine(lambda engine: engine.register_graph(tenant, graph_id, graph))
        evicted = registry.put((tenant, graph_id), text, graph.num_bytes)
        if evicted:
            await service.call_engine(lambda engine: _unregister(engine, evicted))
    return JSONResponse(
        {
            "graph_id": graph_id,
            "nodes": len(graph.names),
            "edges": len(graph.sources),
            "warnings": warnings,
        }
    )


@routes.get("/v1/workflows")
async def list_graphs(service: ServiceDep, owner: OwnerDep) -> Response:
    names = service.graph_registry.names(owner)
    return JSONResponse({"object": "list", "data": [{"graph_id": name} for name in names]})


@routes.get("/v1/workflows/{graph_id:path}")
async def show_graph(graph_id: str, service: ServiceDep, owner: OwnerDep) -> Response:
    text = service.graph_registry.get((owner, graph_id))
    if text is None:
        raise _unknown_graph(graph_id)
    return Response(text, media_type="application/json")


@routes.delete("/v1/workflows/{graph_id:path}")
async def unregister_graph(graph_id: str, service: ServiceDep, owner: OwnerDep) -> Response:
    service.check_ready()
    registry = service.graph_registry
    async with registry.lock:
        if not registry.remove((owner, graph_id)):
            raise _unknown_graph(graph_id)
        await service.call_engine(lambda engine: engine.unregister_graph(owner, graph_id))
    return JSONResponse({"graph_id": graph_id, "deleted": True})


@routes.post("/v1/workflows/{workflow_id:path}/advance", openapi_extra=body_of(AdvanceRequest))
async def advance_run(
    workflow_id: str, request: Request, service: ServiceDep, tenant: TenantDep
) -> Response:
    service.check_ready()
    body = await service.bodies.parse(request, tenant, AdvanceRequest)
    unknown = await service.call_engine(lambda engine: _advance(engine, tenant, workflow_id, body))
    if unknown is None:
        raise ApiError(
            404,
            f"no run '{workflow_id}' is in progress; a run begins with its first request and ends "
            "with its graph or after a long time without activity",
            param="workflow_id",
            code="run_not_found",
        )
    return JSONResponse({"unknown_agents": unknown})


def _check_num_graphs(service: Service, tenant: str, graph_id: str) -> None:
    """Raise unless a tenant may register a graph of this name."""
    bound = service.keys.limits_of(tenant).max_graphs
    names = service.graph_registry.names(tenant)
    if bound is not None and len(names) >= bound and graph_id not in names:
        raise ApiError(
            403,
            f"this key may have {bound} registered graphs; DELETE one first",
            code="graph_quota_exceeded",
        )


def _read_graph(data: dict[str, Any]) -> tuple[Graph, bytes, list[str]]:
    """Return a graph, its JSON for ``GET``, and warnings about likely mistakes in it."""
    workflow = Workflow.from_dict(data)
    if not workflow.nodes:
        raise InvalidRequestError("a workflow must have at least one node", param="nodes")
    graph = workflow.freeze()
    text = dump(workflow.to_dict(), ensure_ascii=True)
    return graph, text, warnings_of(data, workflow, graph)


def _advance(
    engine: EngineClient, tenant: str, workflow_id: str, body: AdvanceRequest
) -> list[str] | None:
    unknown = engine.advance_run(tenant, workflow_id, body.completed or [], body.running or [])
    if unknown is not None and body.finished:
        engine.end_run(tenant, workflow_id, keeps_sessions=bool(body.keep_sessions))
    return unknown


def _unregister(engine: EngineClient, keys: list[GraphKey]) -> None:
    for tenant, graph_id in keys:
        engine.unregister_graph(tenant, graph_id)


def _check_id(graph_id: str) -> None:
    if not 1 <= len(graph_id) <= MAX_ID_LEN or graph_id.endswith("/advance"):
        raise InvalidRequestError(
            f"graph_id must have 1 to {MAX_ID_LEN} characters and not end with /advance",
            param="graph_id",
        )


def _unknown_graph(graph_id: str) -> ApiError:
    return ApiError(
        404,
        f"no workflow '{graph_id}' is registered; PUT it first",
        param="graph_id",
        code="graph_not_found",
    )
