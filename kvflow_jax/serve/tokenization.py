"""``/tokenize`` and ``/detokenize``, as vLLM has them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve import chat
from kvflow_jax.serve.chat_tools import ToolTemplate
from kvflow_jax.serve.dependencies import ServiceDep, TenantDep
from kvflow_jax.serve.request_body import read_object, validate
from kvflow_jax.serve.schemas import ChatRequest
from kvflow_jax.serve.service import Service

routes = APIRouter()


class TokenizeRequest(BaseModel):
    """Body of ``POST /tokenize`` with a text."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str
    add_special_tokens: bool = True


class TokenizeChatRequest(BaseModel):
    """The fields of ``POST /tokenize`` with messages that a chat request has not."""

    model_config = ConfigDict(extra="allow", strict=True)

    add_generation_prompt: bool = True


class TokenizeOptions(BaseModel):
    """The fields of ``POST /tokenize`` that go with both."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    """Body of ``POST /detokenize``."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=1 << 32)]]


@routes.post("/tokenize")
async def tokenize(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    body = await read_object(request, service.config.max_body_bytes)
    options = validate(body, TokenizeOptions)
    service.check_model(options.model)
    if (body.get("prompt") is None) == (body.get("messages") is None):
        raise InvalidRequestError("send either prompt or messages", param="prompt")
    if body.get("prompt") is not None:
        prompt = validate(body, TokenizeRequest)
        tokens = await service.tokenize(
            [prompt.prompt],
            lambda t: t.encode(prompt.prompt, add_special_tokens=prompt.add_special_tokens),
        )
    else:
        tokens = await _tokenize_chat(service, body)
    strs = None
    if options.return_token_strs:
        strs = await service.tokenize([], lambda t: t.token_strs(tokens))
    return JSONResponse(
        {
            "count": len(tokens),
            "max_model_len": service.max_model_len,
            "tokens": tokens,
            "token_strs": strs,
        }
    )


@routes.post("/detokenize")
async def detokenize(request: Request, service: ServiceDep, tenant: TenantDep) -> Response:
    service.check_ready()
    data = await read_object(request, service.config.max_body_bytes)
    # Checked first, to spend no work on an oversized list.
    tokens, limit = data.get("tokens"), service.max_model_len
    if isinstance(tokens, list) and len(tokens) > limit:
        raise InvalidRequestError(
            f"tokens has {len(tokens)} entries, the limit is this model's context, {limit}; "
            "split them",
            param="tokens",
        )
    body = validate(data, DetokenizeRequest)
    service.check_model(body.model)
    text = await service.tokenize([], lambda t: t.decode(body.tokens, skip_special_tokens=False))
    return JSONResponse({"prompt": text})


async def _tokenize_chat(service: Service, data: dict[str, object]) -> list[int]:
    adds_prompt = validate(data, TokenizeChatRequest).add_generation_prompt
    body = validate({k: v for k, v in data.items() if k != "add_generation_prompt"}, ChatRequest)
    messages = service.model_reasoning.with_history(chat.read_messages(body))
    kwargs = chat.template_kwargs(body)
    tools = chat.read_chat_tools(body, service.model_tools)
    return await service.tokenize(
        chat.texts_of(messages, tools),
        lambda t: ToolTemplate(t, tools).apply_chat_template(
            messages, add_generation_prompt=adds_prompt, **kwargs
        ),
    )
