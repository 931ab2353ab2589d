"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, as vLLM has them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, FailFast, Field

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.completions import encode_text
from kvflow_jax.serve.dependencies import ServiceDep, TenantDep
from kvflow_jax.serve.disconnect import until_disconnect
from kvflow_jax.serve.json_types import JsonInt
from kvflow_jax.serve.openapi import body_of
from kvflow_jax.serve.request_body import validate
from kvflow_jax.serve.schemas import ChatRequest, CompletionRequest
from kvflow_jax.serve.service import Service
from kvflow_jax.serve.submission import Chat

routes = APIRouter()


class TokenizeRequest(CompletionRequest):
    """Body of ``POST /tokenize`` with a text; the fields of a completion have no effect."""

    prompt: str
    return_token_strs: bool | None = None


class TokenizeChatRequest(ChatRequest):
    """Body of ``POST /tokenize`` with messages: that of a chat."""

    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    """Body of ``POST /detokenize``."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    tokens: Annotated[list[Annotated[JsonInt, Field(ge=0, lt=1 << 32)]], FailFast()]


@routes.post("/tokenize", openapi_extra=body_of(TokenizeRequest, TokenizeChatRequest))
async def tokenize(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    read = partial(_read_text_or_chat, service)
    body, wants_strs = await service.bodies.read(request, tenant, read)
    encoding = _encode(service, tenant, body)
    tokens = await until_disconnect(request.receive, encoding)
    strs = None
    if wants_strs:
        strs = await service.tokenize(tenant, [], lambda t: t.token_strs(tokens))
    return JSONResponse(
        {
            "count": len(tokens),
            "max_model_len": service.max_model_len,
            "tokens": tokens,
            "token_strs": strs,
        }
    )


@routes.post("/detokenize", openapi_extra=body_of(DetokenizeRequest))
async def detokenize(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    limit = service.max_model_len
    body = await service.bodies.read(request, tenant, lambda data: _validate_tokens(data, limit))
    service.check_model(body.model)
    text = await service.tokenize(
        tenant, [], lambda t: t.decode(body.tokens, skip_special_tokens=False)
    )
    return JSONResponse({"prompt": text})


@routes.get("/tokenizer_info")
async def show_tokenizer_info(service: ServiceDep, tenant: TenantDep) -> Response:
    return JSONResponse(await service.tokenize(tenant, [], lambda t: t.info()))


def _read_text_or_chat(
    service: Service, data: dict[str, Any]
) -> tuple[TokenizeRequest | Chat, bool | None]:
    """Return what to tokenize, and whether the texts of the tokens are wanted."""
    if (data.get("prompt") is None) == (data.get("messages") is None):
        raise InvalidRequestError("send either prompt or messages", param="prompt")
    if data.get("prompt") is not None:
        body = validate(data, TokenizeRequest)
        service.check_model(body.model)
        return body, body.return_token_strs
    chat_body = validate(data, TokenizeChatRequest)
    service.check_model(chat_body.model)
    return Chat.read(service, chat_body), chat_body.return_token_strs


def _validate_tokens(body: dict[str, Any], limit: int) -> DetokenizeRequest:
    # Checked first, to spend no work on an oversized list.
    tokens = body.get("tokens")
    if isinstance(tokens, list) and len(tokens) > limit:
        raise InvalidRequestError(
            f"tokens has {len(tokens)} entries, the limit is this model's context, {limit}; "
            "split them",
            param="tokens",
        )
    return validate(body, DetokenizeRequest)


async def _encode(service: Service, tenant: str, body: TokenizeRequest | Chat) -> list[int]:
    """Return the prompt ids that a completion of this body, or this chat, has."""
    if isinstance(body, Chat):
        return (await body.encode(service, tenant)).token_ids
    text, adds_special = body.prompt, body.add_special_tokens is not False
    tokens = await service.tokenize(
        tenant,
        [[text]],
        lambda t: encode_text(t, text, adds_special),
        truncates=body.truncate_prompt_tokens is not None,
    )
    return body.truncate(tokens, service.max_model_len)
