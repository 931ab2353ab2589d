"""From a checked request body to running generations, the same for all routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import Request

from kvflow_jax.grammar.matcher import Matcher
from kvflow_jax.reasoning.syntax import ReasoningMarkup
from kvflow_jax.requests.request_spec import RequestSpec, as_token_ids
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve.chat import read_chat_tools
from kvflow_jax.serve.chat_messages import read_fixed_messages, read_messages, texts_of
from kvflow_jax.serve.chat_prompt import (
    ChatPrompt,
    encode_chat,
    read_prompt_args,
    template_kwargs,
)
from kvflow_jax.serve.chat_tools import ChatTools, ToolTemplate
from kvflow_jax.serve.client_identity import read_identity, read_root_session
from kvflow_jax.serve.disconnect import until_disconnect
from kvflow_jax.serve.generation import Generation
from kvflow_jax.serve.hint_aliases import read_given_hints
from kvflow_jax.serve.prefix_tokens import PrefixTemplate
from kvflow_jax.serve.prompt_edits import (
    PromptEdit,
    edit_prompt,
    move_environment,
    without_environment,
)
from kvflow_jax.serve.protocols import Tokenizer
from kvflow_jax.serve.request_body import has_lone_surrogates
from kvflow_jax.serve.schemas import ChatRequest, GenerationRequest
from kvflow_jax.serve.service import Service
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.workflow.hints import HintParser, Hints


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat request, read and checked: of the chat route, or translated to it by another.

    Attributes:
        params: sampling parameters of each choice.
        messages: as chat templates expect them.
        template_kwargs: the variables that the client passes to the template.
        prompt_args: how the template ends the prompt.
        fixed_messages: the beginning of the chat that all calls of the agent share, where the
            client has marked it; empty: it has not.
        prompt_edits: what was left out of the client's messages, moved or replaced.
    """

    body: ChatRequest
    params: Sequence[SamplingParams]
    messages: list[dict[str, Any]]
    template_kwargs: dict[str, Any]
    prompt_args: dict[str, bool]
    tools: ChatTools
    fixed_messages: Sequence[dict[str, Any]] = ()
    prompt_edits: frozenset[PromptEdit] = frozenset()

    @classmethod
    def read(cls, service: Service, body: ChatRequest) -> Chat:
        """Read a body; raise InvalidRequestError, which names the invalid field."""
        tools = read_chat_tools(body, service.model_tools)
        params = body.sampling_params(service.sampling_defaults)
        output = tools.structured_outputs(params[0].structured_outputs)
        edits = set[PromptEdit]()
        messages = read_messages(body, partial(edits.add, PromptEdit.LONE_SURROGATES))
        fixed_messages = read_fixed_messages(body)
        if not service.config.disable_prompt_edits:
            messages, left_out = edit_prompt(messages)
            edits |= left_out
            fixed_messages, _ = edit_prompt(fixed_messages)
        if service.config.move_environment:
            messages, is_moved = move_environment(messages)
            fixed_messages = without_environment(fixed_messages)
            edits |= {PromptEdit.ENVIRONMENT} if is_moved else set()
        messages = service.model_reasoning.with_history(messages)
        return cls(
            body,
            [one.replace(structured_outputs=output) for one in params],
            messages,
            template_kwargs(body),
            read_prompt_args(body, messages),
            tools,
            fixed_messages,
            frozenset(edits),
        )

    async def encode(
        self, service: Service, tenant: str, hint_parser: HintParser | None = None
    ) -> ChatPrompt:
        """Return the prompt, and the hints.

        Raises:
            InvalidRequestError: the texts are too long, or the template refuses the messages.
        """
        written = [self.messages, [tool.json for tool in self.tools.tools], self.template_kwargs]
        reads_special_tokens = service.config.chat_special_tokens

        def encode(tokenizer: Tokenizer) -> ChatPrompt:
            marks = None if reads_special_tokens else tokenizer.control_tokens
            template = ToolTemplate(tokenizer, self.tools, marks)
            return encode_chat(
                template,
                self.messages,
                self.template_kwargs,
                self.prompt_args,
                hint_parser,
                self.fixed_messages,
                PrefixTemplate(template, service.prefix_tokens, tenant),
                recognises_agents=service.recognises_callers,
            )

        prompt = await service.tokenize(
            tenant,
            [texts_of(written)],
            encode,
            truncates=self.body.truncate_prompt_tokens is not None,
        )
        truncated, hints = self.body.truncate(prompt.token_ids, service.max_model_len), prompt.hints
        if len(truncated) == len(prompt.token_ids):
            return prompt
        if hints is not None:
            # What was measured has moved.
            is_declared = hint_parser is not None and hint_parser.fixed_prefix is not None
            hints = replace(hints, num_fixed=None, is_clipped=hints.is_clipped or is_declared)
        return ChatPrompt(truncated, hints)

    async def submit(
        self, request: Request, service: Service, tenant: str, answer_id: str
    ) -> Generation:
        """Encode, compile its grammar and submit its choices; the caller must close the generation.

        Raises:
            ApiError, InvalidRequestError, QueueFullError, EngineClosedError,
            ClientDisconnectedError.
        """
        service.check_room(tenant, len(self.params), len(self.params))
        hint_parser = self._hint_parser(request, service, tenant)
        prompt = await until_disconnect(request.receive, self.encode(service, tenant, hint_parser))
        is_continued = self.prompt_args.get("continue_final_message", False)
        reasoning = service.model_reasoning.markup(
            service.tokenizer,
            prompt.token_ids,
            begun=self.messages[-1]["content"] if is_continued else "",
            is_included=self.body.reasoning_fields.is_included,
        )
        grammar = await until_disconnect(
            request.receive, service.compile_grammar(tenant, self.params[0], reasoning)
        )
        specs = request_specs(
            service,
            tenant,
            self.body,
            self.params,
            [prompt.token_ids],
            [prompt.hints],
            hint_parser,
            grammar,
            self.tools.markup,
            reasoning,
            num_system=prompt.num_system,
        )
        ids = request_ids(request, self.body, answer_id)
        edits = self.prompt_edits | edits_of_body(request)
        return service.generate(specs, self.body.num_choices, tenant, ids, edits)

    def _hint_parser(self, request: Request, service: Service, tenant: str) -> HintParser | None:
        body, fields = self.body, self.body.model_extra or {}
        identity = root_session = None
        if not service.config.disable_client_identity:
            names = [tool.name for tool in self.tools.tools]
            identified = read_identity(request.headers, fields, self.messages, names)
            if identified is not None:
                identity = identified.identity
                service.metrics.observe_identity(identified.source)
            root_session = read_root_session(request.headers, fields)
        given = read_given_hints(request.headers, body.agent_hints, fields)
        return service.hint_parser(tenant, given, body.session_id, identity, root_session)


def request_ids(request: Request, body: GenerationRequest, answer_id: str) -> frozenset[str]:
    """Return the ids by which the caller of a request may abort it.

    They are that of its answer, and those that the caller gives it: the header ``X-Request-Id``,
    SGLang's field ``rid`` and vLLM's ``request_id``.
    """
    extra = body.model_extra or {}
    given = (request.headers.get("x-request-id"), extra.get("rid"), extra.get("request_id"))
    return frozenset([answer_id, *(one for one in given if isinstance(one, str) and one)])


def edits_of_body(request: Request) -> frozenset[PromptEdit]:
    """Return the edits that were made when the body was parsed."""
    return frozenset([PromptEdit.LONE_SURROGATES] if has_lone_surrogates(request) else [])


def request_specs(
    service: Service,
    tenant: str,
    body: GenerationRequest,
    params: Sequence[SamplingParams],
    prompts: Sequence[Sequence[int]],
    hints: Sequence[Hints | None],
    hint_parser: HintParser | None,
    grammar: Matcher | None,
    call_markup: CallMarkup | None = None,
    reasoning: ReasoningMarkup | None = None,
    num_system: int | None = None,
) -> list[RequestSpec]:
    """Return what to submit: each prompt with its hints, once for each of ``params``."""
    priority, keys = body.priority, service.keys
    if hint_parser is not None and priority is None:
        priority = hint_parser.priority
    priority = priority or 0
    rank = min(priority, keys.limits_of(tenant).max_priority)
    if hint_parser is not None and hint_parser.priority not in (None, priority):
        # That of the body precedes.
        hints = [None if one is None else replace(one, is_clipped=True) for one in hints]
    specs = []
    for prompt, prompt_hints in zip(prompts, hints, strict=True):
        prompt_ids = as_token_ids(prompt, service.vocab_size)
        specs += [
            RequestSpec(
                prompt_ids,
                choice_params,
                salt=keys.cache_salt(tenant, body.cache_salt),
                cache_tenant=tenant if keys.is_required else "",
                tenant=tenant,
                # The users of one application share its agents, and its share of the engine.
                user=body.user or "",
                priority=priority,
                rank=rank,
                num_system=num_system,
                choice=choice,
                hints=prompt_hints,
                call_markup=call_markup,
                reasoning=reasoning,
                grammar=grammar,
            )
            for choice, choice_params in enumerate(params)
        ]
    return specs
