"""``/v1/learned_order``: what was learned of the order in which a tenant's agents call."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.reuse.predictor import Transition
from kvflow_jax.serve.dependencies import OwnerDep, ServiceDep

routes = APIRouter()

DEFAULT_ROWS, MAX_ROWS = 200, 500  # in one answer


@routes.get("/v1/learned_order")
async def show_learned_order(request: Request, service: ServiceDep, owner: OwnerDep) -> Response:
    service.check_ready()
    limit = _limit(request.query_params.get("limit"))
    rows = await service.call_engine(lambda engine: engine.learned_order(owner, limit))
    return JSONResponse({"object": "list", "data": [_row(row) for row in rows]})


@routes.delete("/v1/learned_order")
async def erase_learned_order(service: ServiceDep, owner: OwnerDep) -> Response:
    service.check_ready()
    is_erased = await service.call_engine(lambda engine: engine.erase_learned_order(owner))
    return JSONResponse({"object": "learned_order", "deleted": is_erased})


def _row(row: Transition) -> dict[str, Any]:
    delay = row.delay
    return {
        "context": list(row.context),
        "agent": row.agent,
        "chance": round(row.chance, 4),
        "count": round(row.num_seen, 2),
        "delay_s": (
            None
            if delay is None
            else {"p50": round(delay.quantile(0.5), 4), "p90": round(delay.quantile(0.9), 4)}
        ),
    }


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_ROWS
    if text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_ROWS:
        return int(text)
    raise InvalidRequestError(f"limit must be between 1 and {MAX_ROWS}", param="limit")
