"""The HTTP routes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from kvflow_jax import __version__
from kvflow_jax.serve import chat, completions, tokenization, workflows
from kvflow_jax.serve.dependencies import ServiceDep, TenantDep
from kvflow_jax.serve.errors import ApiError, DisconnectMiddleware, install_error_handlers
from kvflow_jax.serve.generation import Generation
from kvflow_jax.serve.http_middleware import RequestIdMiddleware, SlashMiddleware
from kvflow_jax.serve.logprobs import LogprobWriter
from kvflow_jax.serve.messages.errors import error_response
from kvflow_jax.serve.messages.routes import routes as messages
from kvflow_jax.serve.metrics import CONTENT_TYPE
from kvflow_jax.serve.request_body import parse_body
from kvflow_jax.serve.responses.routes import routes as responses
from kvflow_jax.serve.schemas import ChatRequest, CompletionRequest, GenerationRequest
from kvflow_jax.serve.service import Service
from kvflow_jax.serve.stream import ChunkWriter, EventStream, Format, full_response
from kvflow_jax.serve.submission import Chat, request_specs
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
    app.include_router(public_routes)
    app.include_router(routes)
    app.include_router(workflows.routes)
    app.include_router(tokenization.routes)
    app.include_router(responses)
    app.include_router(messages)
    install_error_handlers(app, {"/v1/messages": error_response})
    app.add_middleware(DisconnectMiddleware)
    app.add_middleware(SlashMiddleware)
    app.add_middleware(RequestIdMiddleware)
    return app


@public_routes.get("/health")
@public_routes.head("/health")
async def health(service: ServiceDep) -> Response:
    if not service.is_healthy:
        raise ApiError(503, "the engine has stopped; restart the server", code="engine_dead")
    return JSONResponse({"status": "ok"})


@public_routes.get("/ready")
@public_routes.head("/ready")
async def ready(service: ServiceDep) -> Response:
    service.check_serving()
    return JSONResponse({"status": service.phase.value})


@public_routes.get("/metrics")
async def metrics(service: ServiceDep) -> Response:
    return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@public_routes.get("/version")
async def show_version() -> Response:
    return JSONResponse({"version": __version__})


@routes.get("/v1/models")
async def list_models(service: ServiceDep, tenant: TenantDep) -> Response:
    return JSONResponse({"object": "list", "data": [service.model_card()]})


# ``:path``, because names like Qwen/Qwen3-0.6B contain a slash.
@routes.get("/v1/models/{model_id:path}")
async def show_model(model_id: str, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_model(model_id)
    return JSONResponse(service.model_card())


@routes.post("/v1/chat/completions")
async def create_chat_completion(
    request: Request, service: ServiceDep, tenant: TenantDep
) -> Response:
    service.check_ready()
    body = await parse_body(request, ChatRequest, service.config.max_body_bytes)
    service.check_model(body.model)
    read = Chat.read(service, body)
    response_format = chat.ChatFormat(
        service.model_name, body, LogprobWriter(service.tokenizer), read.tools
    )
    generation = await read.submit(request, service, tenant)
    return await _respond(request, generation, body, response_format)


@routes.post("/v1/completions")
async def create_completion(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    body = await parse_body(request, CompletionRequest, service.config.max_body_bytes)
    service.check_model(body.model)
    params = body.sampling_params(service.sampling_defaults)
    prompts = completions.read_prompts(body.prompt)
    service.check_num_completions(len(prompts) * len(params))
    grammar = await service.compile_grammar(params[0])
    encoded = completions.token_prompts(prompts)
    if encoded is None:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = await service.tokenize(texts, lambda t: completions.encode_prompts(t, prompts))
    echoes = completions.echo_prompts(service.tokenizer, prompts, encoded) if body.echo else ()
    response_format = completions.CompletionFormat(
        service.model_name, body, LogprobWriter(service.tokenizer), echoes
    )
    hint_parser = service.hint_parser(body.agent_hints)
    hints: Sequence[Hints | None] = [None] * len(encoded)
    if hint_parser is not None:
        hints = await service.run_in_thread(partial(completions.read_hints, hint_parser, encoded))
    specs = request_specs(request, tenant, body, params, encoded, hints, hint_parser, grammar)
    generation = service.generate(specs, body.num_choices)
    return await _respond(request, generation, body, response_format)


@routes.post("/flush_cache")
async def flush_cache(service: ServiceDep, tenant: TenantDep) -> Response:
    if not await service.flush_cache():
        stats = service.stats
        raise ApiError(
            409,
            f"the cache is in use: {stats.num_running} running, {stats.num_waiting} waiting "
            "requests; try again when they have finished",
            code="cache_in_use",
        )
    return JSONResponse({"flushed": True})


async def _respond(
    request: Request, generation: Generation, body: GenerationRequest, response_format: Format
) -> Response:
    if body.stream:
        writer = ChunkWriter(
            response_format, generation.num_choices, include_usage=body.include_usage
        )
        return EventStream(generation, writer)
    return await full_response(generation, response_format, request.receive)
