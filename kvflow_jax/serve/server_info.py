"""``/server_info`` and ``/load``: how the server is configured, and how busy it is."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from kvflow_jax import __version__
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.dependencies import ServiceDep, TenantDep

routes = APIRouter()


@routes.get("/server_info")
async def show_server_info(service: ServiceDep, tenant: TenantDep) -> Response:
    config, stats = service.config, service.stats
    is_admin = service.keys.limits_of(tenant).is_admin
    return JSONResponse(
        {
            "version": __version__,
            "status": service.phase.value,
            "model": config.load.model,
            "served_model_names": service.model_names,
            "max_model_len": service.max_model_len,
            "block_size": config.engine.page_size,
            "num_device_blocks": stats.num_blocks,
            "num_host_blocks": stats.max_blocks_host,
            # Names of files and the like are no business of a tenant among others.
            "settings": _settings(config) if is_admin else None,
        }
    )


@routes.get("/load")
async def show_load(service: ServiceDep, tenant: TenantDep) -> Response:
    is_admin = service.keys.limits_of(tenant).is_admin
    num_open = service.num_open_of(None if is_admin else tenant)
    return JSONResponse({"server_load": num_open})  # vLLM's name


def _settings(config: ServerConfig) -> dict[str, Any]:
    """Return what the flags say, by name of the setting, without secrets."""
    return {
        setting.name: _json_of(setting.value)
        for part in config.configs()
        for setting in part.settings()
        if not setting.flag.values.is_secret
    }


def _json_of(value: object) -> object:
    """Return a setting's value as JSON has it."""
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value
