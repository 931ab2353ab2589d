"""The HTTP routes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from kvflow_jax import __version__
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve import (
    abort,
    chat,
    completions,
    learned_order,
    models,
    openapi,
    server_info,
    tokenization,
    workflows,
)
from kvflow_jax.serve.client_identity import read_root_session
from kvflow_jax.serve.cors import CrossOriginMiddleware
from kvflow_jax.serve.dependencies import (
    AdminDep,
    ServiceDep,
    TenantDep,
    check_may_read_metrics,
)
from kvflow_jax.serve.disconnect import until_disconnect
from kvflow_jax.serve.errors import ApiError, DisconnectMiddleware, install_error_handlers
from kvflow_jax.serve.generation import Generation
from kvflow_jax.serve.hint_aliases import read_given_hints
from kvflow_jax.serve.http_middleware import (
    HeadMiddleware,
    RequestEndMiddleware,
    RequestIdMiddleware,
    SlashMiddleware,
)
from kvflow_jax.serve.logprobs import LogprobWriter
from kvflow_jax.serve.messages.errors import error_response
from kvflow_jax.serve.messages.routes import routes as messages
from kvflow_jax.serve.metrics import CONTENT_TYPE
from kvflow_jax.serve.openapi import body_of
from kvflow_jax.serve.request_body import validate
from kvflow_jax.serve.responses.routes import routes as responses
from kvflow_jax.serve.schemas import ChatRequest, CompletionRequest, GenerationRequest
from kvflow_jax.serve.service import Service
from kvflow_jax.serve.stream import ChunkWriter, EventStream, Format, full_response
from kvflow_jax.serve.submission import Chat, edits_of_body, request_ids, request_specs
from kvflow_jax.serve.web_pages import WebPageMiddleware
from kvflow_jax.workflow.hints import Hints

public_routes = APIRouter()
routes = APIRouter()


def create_app(service: Service) -> FastAPI:
    """Return the ASGI application over ``service``.

    ``request_body`` parses the bodies, because FastAPI's own parser reads a whole body before it
    checks the size.
    """
    app = FastAPI(
        title="kvflow-jax",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    routers = (
        routes,
        responses,
        messages,
        models.routes,
        tokenization.routes,
        workflows.routes,
        learned_order.routes,
        abort.routes,
        server_info.routes,
        openapi.routes,
        public_routes,
    )
    for router in routers:
        app.include_router(router)
    app.state.routes = [route for router in routers for route in router.routes]
    install_error_handlers(app, {"/v1/messages": error_response})
    app.add_middleware(HeadMiddleware)
    app.add_middleware(CrossOriginMiddleware, config=service.config)
    app.add_middleware(WebPageMiddleware, config=service.config)
    app.add_middleware(DisconnectMiddleware)
    app.add_middleware(SlashMiddleware)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(RequestEndMiddleware)
    return app


# Amazon SageMaker asks for /ping.
@public_routes.get("/ping")
@public_routes.post("/ping")
@public_routes.get("/health")
async def health(service: ServiceDep) -> Response:
    service.check_healthy()
    return JSONResponse({"status": "ok"})


@public_routes.get("/ready")
async def ready(service: ServiceDep) -> Response:
    service.check_serving()
    return JSONResponse({"status": service.phase.value})


@public_routes.get(
    "/metrics",
    response_class=PlainTextResponse,
    dependencies=[Depends(check_may_read_metrics)],
)
async def metrics(service: ServiceDep) -> Response:
    return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@public_routes.get("/version")
async def show_version() -> Response:
    return JSONResponse({"version": __version__})


@routes.post("/v1/chat/completions", openapi_extra=body_of(ChatRequest))
async def create_chat_completion(
    request: Request, service: ServiceDep, tenant: TenantDep
) -> Response:
    service.check_ready()
    read = await service.bodies.read(request, tenant, partial(_read_chat, service))
    body = read.body
    response_format = chat.ChatFormat(
        service.model_name,
        body,
        _logprob_writer(service, body),
        read.tools,
        chat.echo_text(body, read.messages),
    )
    generation = await read.submit(request, service, tenant, response_format.id)
    return await _respond(request, service, generation, body, response_format)


@routes.post("/v1/completions", openapi_extra=body_of(CompletionRequest))
async def create_completion(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    reading = service.bodies.read(request, tenant, partial(_read_completion, service))
    body, params, prompts = await reading
    service.check_room(tenant, len(params), len(prompts) * len(params))
    compiling = service.compile_grammar(tenant, params[0])
    grammar = await until_disconnect(request.receive, compiling)
    encoded = completions.token_prompts(prompts)
    if encoded is None:
        encoding = completions.encode_prompts(
            service,
            tenant,
            prompts,
            truncates=body.truncate_prompt_tokens is not None,
            adds_special_tokens=body.add_special_tokens is not False,
        )
        encoded = await until_disconnect(request.receive, encoding)
    if body.truncate_prompt_tokens is not None:
        # Echoed as they are then, not as they were sent.
        encoded = [body.truncate(ids, service.max_model_len) for ids in encoded]
        prompts = [*encoded]
    fields, root_session = body.model_extra or {}, None
    if not service.config.disable_client_identity:
        root_session = read_root_session(request.headers, fields)
    given = read_given_hints(request.headers, body.agent_hints, fields)
    hint_parser = service.hint_parser(tenant, given, body.session_id, root_session=root_session)
    hints: Sequence[Hints | None] = [None] * len(encoded)
    if hint_parser is not None:
        read_hints = partial(completions.read_hints, hint_parser, encoded)
        hints = await until_disconnect(request.receive, service.run_in_thread(tenant, read_hints))
    # Checks the token ids, which echo decodes.
    specs = request_specs(service, tenant, body, params, encoded, hints, hint_parser, grammar)
    echoes: Sequence[completions.Echo] = ()
    if body.echo:
        echo = partial(completions.echo_prompts, service.tokenizer, prompts, encoded)
        echoes = await service.run_in_thread(tenant, echo)
    response_format = completions.CompletionFormat(
        service.model_name, body, _logprob_writer(service, body), echoes
    )
    ids = request_ids(request, body, response_format.id)
    edits = edits_of_body(request)
    generation = service.generate(specs, body.num_choices, tenant, ids, edits)
    return await _respond(request, service, generation, body, response_format)


@routes.post("/flush_cache")
async def flush_cache(service: ServiceDep, tenant: AdminDep) -> Response:
    if not await service.flush_cache():
        stats = service.stats
        raise ApiError(
            409,
            f"the cache is in use: {stats.num_running} running, {stats.num_waiting} waiting "
            "requests; try again when they have finished",
            code="cache_in_use",
        )
    return JSONResponse({"flushed": True})


# Run where the body is parsed, which for a large one is a thread.


def _read_chat(service: Service, data: dict[str, Any]) -> Chat:
    body = validate(data, ChatRequest)
    service.check_model(body.model)
    return Chat.read(service, body)


def _read_completion(
    service: Service, data: dict[str, Any]
) -> tuple[CompletionRequest, list[SamplingParams], list[completions.Prompt]]:
    body = validate(data, CompletionRequest)
    service.check_model(body.model)
    params = body.sampling_params(service.sampling_defaults)
    return body, params, completions.read_prompts(body.prompt)


def _logprob_writer(service: Service, body: GenerationRequest) -> LogprobWriter:
    return LogprobWriter(service.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))


async def _respond(
    request: Request,
    service: Service,
    generation: Generation,
    body: GenerationRequest,
    response_format: Format,
) -> Response:
    run = partial(service.run_in_thread, generation.tenant)
    if body.stream:
        writer = ChunkWriter(
            response_format,
            generation.num_choices,
            include_usage=body.include_usage or service.config.force_include_usage,
            continuous_usage=body.continuous_usage,
            every_token=bool(body.return_token_ids),
        )
        return EventStream(generation, writer, run)
    return await full_response(generation, response_format, request.receive, run)
