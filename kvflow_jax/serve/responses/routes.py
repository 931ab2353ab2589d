"""The route ``POST /v1/responses``."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from kvflow_jax.serve.dependencies import ServiceDep, TenantDep
from kvflow_jax.serve.large_answer import json_response
from kvflow_jax.serve.logprobs import LogprobWriter
from kvflow_jax.serve.openapi import body_of
from kvflow_jax.serve.request_body import validate
from kvflow_jax.serve.responses.response import ResponseObject
from kvflow_jax.serve.responses.schema import ResponsesRequest
from kvflow_jax.serve.responses.tools import ToolNames
from kvflow_jax.serve.responses.writer import ResponseWriter
from kvflow_jax.serve.service import Service
from kvflow_jax.serve.stream import EventStream, collect, hint_headers
from kvflow_jax.serve.submission import Chat

routes = APIRouter()


@routes.post("/v1/responses", openapi_extra=body_of(ResponsesRequest))
async def create_response(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    reading = service.bodies.read(request, tenant, partial(_read, service))
    body, names, chat = await reading
    logprobs = LogprobWriter(service.tokenizer) if body.wants_logprobs else None
    response = ResponseObject(service.model_name, body, chat.params[0])
    writer = ResponseWriter(response, chat.tools, names, logprobs)
    generation = await chat.submit(request, service, tenant, response.id)
    run = partial(service.run_in_thread, tenant)
    if body.stream:
        return EventStream(generation, writer, run)
    (choice,) = await collect(generation, request.receive)
    usage = generation.usage
    write = partial(writer.full, choice, usage)
    return await json_response([choice], write, hint_headers(usage), run)


def _read(service: Service, data: dict[str, Any]) -> tuple[ResponsesRequest, ToolNames, Chat]:
    body = validate(data, ResponsesRequest)
    service.check_model(body.model)
    chat_body, names = body.to_chat()
    return body, names, Chat.read(service, chat_body)
