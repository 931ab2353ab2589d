"""``/v1/models``: the names that are served, with the context under each name clients read."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from kvflow_jax.serve.dependencies import ServiceDep, TenantDep
from kvflow_jax.serve.http_middleware import without_spare_slashes
from kvflow_jax.serve.service import Service

routes = APIRouter()

_CREATED = int(time.time())  # of the server, since models have no date of their own


@routes.get("/v1/models")
async def list_models(service: ServiceDep, tenant: TenantDep) -> Response:
    names, max_model_len = service.model_names, service.max_model_len
    return JSONResponse(
        {
            "object": "list",
            "data": [_card(service, name) for name in names],
            # Codex reads these instead of the cards.
            "models": [
                {"slug": name, "display_name": name, "context_window": max_model_len}
                for name in names
            ],
        }
    )


# ``:path``, because names like Qwen/Qwen3-0.6B contain a slash.
@routes.get("/v1/models/{model_id:path}")
async def show_model(model_id: str, service: ServiceDep, tenant: TenantDep) -> Response:
    # SlashMiddleware has taken slashes from a name that is the path of a folder, as /models/qwen.
    names = (*service.model_names, service.config.load.model)
    same = (name for name in names if without_spare_slashes(f"/{name}") == f"/{model_id}")
    model_id = next(same, model_id)
    service.check_model(model_id)
    is_served = model_id in service.model_names
    return JSONResponse(_card(service, model_id if is_served else service.model_name))


def _card(service: Service, name: str) -> dict[str, Any]:
    max_model_len = service.max_model_len
    return {
        "id": name,
        "object": "model",
        "created": _CREATED,
        "owned_by": "kvflow-jax",
        "root": service.config.load.model,
        "parent": None,
        "max_model_len": max_model_len,  # vLLM's name of it
        "context_length": max_model_len,  # of OpenRouter, LM Studio and their clients
        "meta": {"n_ctx": max_model_len},  # of llama.cpp
    }
