"""The routes ``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvflow_jax.errors import ContextLengthError
from kvflow_jax.serve.dependencies import ServiceDep, TenantDep
from kvflow_jax.serve.disconnect import until_disconnect
from kvflow_jax.serve.messages.errors import prompt_too_long
from kvflow_jax.serve.messages.schema import CountTokensRequest, MessagesRequest
from kvflow_jax.serve.messages.writer import MessageWriter
from kvflow_jax.serve.openapi import body_of
from kvflow_jax.serve.request_body import validate
from kvflow_jax.serve.service import Service
from kvflow_jax.serve.stream import EventStream, collect, hint_headers, new_id
from kvflow_jax.serve.submission import Chat

routes = APIRouter()
Body = TypeVar("Body", bound=CountTokensRequest)


@routes.post("/v1/messages", openapi_extra=body_of(MessagesRequest))
async def create_message(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    reading = service.bodies.read(request, tenant, partial(_read, service, MessagesRequest))
    body, chat = await reading
    message_id = new_id("msg")
    try:
        generation = await chat.submit(request, service, tenant, message_id)
    except ContextLengthError as error:
        raise prompt_too_long(error) from error
    writer = MessageWriter(message_id, service.model_name, chat.tools, generation.usage)
    if body.stream:
        return EventStream(generation, writer, partial(service.run_in_thread, tenant))
    (choice,) = await collect(generation, request.receive)
    answer = writer.full(choice, generation.usage)
    return JSONResponse(answer, headers=hint_headers(generation.usage))


@routes.post("/v1/messages/count_tokens", openapi_extra=body_of(CountTokensRequest))
async def count_tokens(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    reading = service.bodies.read(request, tenant, partial(_read, service, CountTokensRequest))
    _, chat = await reading
    try:
        encoding = chat.encode(service, tenant)
        prompt = await until_disconnect(request.receive, encoding)
    except ContextLengthError as error:
        raise prompt_too_long(error) from error
    return JSONResponse({"input_tokens": len(prompt.token_ids)})


def _read(service: Service, schema: type[Body], data: dict[str, Any]) -> tuple[Body, Chat]:
    body = validate(data, schema)
    service.check_model(body.model)
    return body, Chat.read(service, body.to_chat())
