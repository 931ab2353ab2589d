"""The server's state: its phase (starting, ready, draining), engine and tokenizer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from kvflow_jax.bounds.tenant_lru import Usage
from kvflow_jax.errors import ContextLengthError, InvalidRequestError, QueueFullError
from kvflow_jax.grammar.matcher import Matcher
from kvflow_jax.reasoning.syntax import ReasoningMarkup
from kvflow_jax.requests.outputs import EngineStats, Output
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve.auth import KeyRing
from kvflow_jax.serve.chat_reasoning import ModelReasoning
from kvflow_jax.serve.chat_tools import ModelTools
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.generation import Generation, Mailbox
from kvflow_jax.serve.graph_registry import GraphRegistry
from kvflow_jax.serve.hint_aliases import GivenHints
from kvflow_jax.serve.key_store import KeyStore
from kvflow_jax.serve.metrics import Metrics
from kvflow_jax.serve.prefix_tokens import PrefixTokens
from kvflow_jax.serve.prompt_edits import PromptEdit
from kvflow_jax.serve.protocols import EngineClient, Tokenizer
from kvflow_jax.serve.request_body import BodyReader
from kvflow_jax.serve.tenant_threads import TenantThreads
from kvflow_jax.serve.token_quotas import TokenQuotas
from kvflow_jax.workflow.graph_store import GraphStore
from kvflow_jax.workflow.hints import HintParser, Hints

NUM_TOKENIZER_THREADS = 2
NUM_GRAMMAR_THREADS = 2  # the compiler has as many: the queue before it is this one
MAX_TRUNCATED = 4  # contexts of text that one truncated prompt may have
# Each call waits for the end of an engine step, which then answers all waiting calls at once.
NUM_ENGINE_CALLERS = 32

Result = TypeVar("Result")


class Phase(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Service:
    """The state behind the routes. Runs on the event loop.

    The engine answers a call only after its current step, and the tokenizer takes tens of
    milliseconds for a long prompt. Each has a thread pool, so that the loop keeps serving streams.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.phase = Phase.STARTING
        self.key_store = KeyStore(config)
        self._token_quotas = TokenQuotas()
        self.model_names = _served_names(config, config.load.model)
        self.metrics = Metrics(
            lambda: self.model_name,
            lambda: self.stats,
            config.engine.page_size,
            lambda: 0 if self._engine is None else self._engine.max_model_len,
            lambda: {
                "hint_graphs": self._graph_store.usage,
                "registered_graphs": self.graph_registry.usage,
                "prefix_tokens": self.prefix_tokens.usage,
                "bodies": Usage(num_bytes=self.bodies.memory.used_bytes),
            },
        )
        self.sampling_defaults: Mapping[str, int | float] = {}
        self.bodies = BodyReader(
            config.max_body_bytes,
            lambda: 0 if self._engine is None else self._engine.max_model_len,
            self._refuse_body,
        )
        self.graph_registry = GraphRegistry()
        self.prefix_tokens = PrefixTokens()
        self._graph_store = GraphStore()
        self._engine: EngineClient | None = None
        self._tokenizer: Tokenizer | None = None
        self._model_tools = ModelTools.of(None, config.tool_call_parser)
        self._model_reasoning = ModelReasoning()
        self._mailbox: Mailbox | None = None
        self._open_generations: set[Generation] = set()
        self._tokenizer_threads = TenantThreads(NUM_TOKENIZER_THREADS, "tokenizer")
        self._grammar_threads = TenantThreads(NUM_GRAMMAR_THREADS, "grammar-call")
        self._engine_callers = ThreadPoolExecutor(
            NUM_ENGINE_CALLERS, thread_name_prefix="engine-call"
        )

    def start(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer | None,
        model_name: str,
        sampling_defaults: Mapping[str, int | float] = MappingProxyType({}),
    ) -> None:
        """Start to accept requests. Called on the loop.

        Without a tokenizer (random weights of a preset) only prompts of token ids are accepted.
        """
        self.sampling_defaults = sampling_defaults
        self._mailbox = Mailbox(asyncio.get_running_loop())
        self._engine, self._tokenizer = engine, tokenizer
        self._model_tools = ModelTools.of(tokenizer, self.config.tool_call_parser)
        self._model_reasoning = ModelReasoning.of(tokenizer, self.config.reasoning_parser)
        self.model_names = _served_names(self.config, model_name)
        # A signal may have started draining already.
        if self.phase is Phase.STARTING:
            self.phase = Phase.READY

    @property
    def keys(self) -> KeyRing:
        """The API keys in force."""
        return self.key_store.ring

    @property
    def model_name(self) -> str:
        """The name in answers: the first of those served, whichever a request uses, as in vLLM."""
        return self.model_names[0]

    @property
    def recognises_callers(self) -> bool:
        """Whether agents are recognised where requests do not name them."""
        return self.config.engine.cache.recognises_callers

    @property
    def is_engine_alive(self) -> bool:
        """True if there is an engine and its thread runs."""
        return self._engine is not None and self._engine.is_alive

    @property
    def is_healthy(self) -> bool:
        """False once the engine thread has died; a server that is loading is healthy."""
        return self._engine is None or self._engine.is_alive

    def check_healthy(self) -> None:
        """Raise unless the process is of use; one that is loading is.

        Raises:
            ApiError: 503, if the engine has died, or its step does not end: restart the server.
        """
        if not self.is_healthy:
            raise _engine_died()
        if self._engine is not None and (reason := self._engine.stuck_reason):
            raise ApiError(503, reason, code="stalled")

    @property
    def is_ready(self) -> bool:
        return self.phase is Phase.READY and self.is_healthy

    @property
    def stats(self) -> EngineStats:
        return EngineStats() if self._engine is None else self._engine.stats

    @property
    def max_model_len(self) -> int:
        """The model's context in tokens; raise a 503 ApiError while there is none."""
        return self._require_ready()[0].max_model_len

    @property
    def vocab_size(self) -> int:
        """Exclusive bound of the model's token ids; raise a 503 ApiError while there is none."""
        return self._require_ready()[0].vocab_size

    def check_ready(self) -> None:
        """Raise unless the engine accepts requests.

        Raises:
            ApiError: 503, if the server is starting or draining, or the engine has died.
        """
        self._require_ready()

    def check_serving(self) -> None:
        """Raise unless the engine makes progress; a stalled one still queues new requests.

        Raises:
            ApiError: 503, as for ``check_ready``, or naming the process that does not answer.
        """
        engine, _ = self._require_ready()
        if reason := engine.stalled_by:
            raise ApiError(503, f"{reason}; requests wait for it", code="stalled")

    def check_model(self, name: str | None) -> None:
        """Raise unless ``name`` is a served name, the value of ``--model``, or none.

        Raises:
            ApiError: 404, which names those that are served.
        """
        if not name or name in self.model_names or name == self.config.load.model:
            return
        served = ", ".join(f"'{served}'" for served in self.model_names)
        raise ApiError(
            404,
            f"the model '{name}' does not exist; this server serves {served}",
            param="model",
            code="model_not_found",
        )

    async def tokenize(
        self,
        tenant: str,
        prompts: Iterable[Iterable[str]],
        encode: Callable[[Tokenizer], Result],
        *,
        truncates: bool = False,
    ) -> Result:
        """Run ``encode`` with the tokenizer on the tokenizer threads, in the tenant's turn.

        Args:
            prompts: all texts of each prompt. A prompt whose texts cannot fit into the context
                together is refused before tokenization, which takes minutes for a large body.
                Iterated on the thread.
            truncates: the prompts will be truncated, so that longer texts are accepted.

        Raises:
            InvalidRequestError: a prompt is too long, the model has no tokenizer, or ``encode``
                raises it.
        """
        engine, _ = self._require_ready()
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InvalidRequestError(
                f"the model '{self.model_name}' has no tokenizer; send token ids as the prompt of "
                "/v1/completions",
                code="no_tokenizer",
            )
        max_tokens, max_token_bytes = engine.max_model_len, tokenizer.max_token_bytes
        max_bytes = max_tokens * max_token_bytes * (MAX_TRUNCATED if truncates else 1)

        def check_and_encode() -> Result:
            for texts in prompts:
                num_bytes = sum(map(num_utf8_bytes, texts))
                if num_bytes > max_bytes:
                    num_tokens = -(-num_bytes // max_token_bytes)
                    raise ContextLengthError(num_tokens, max_tokens, is_exact=False)
            return encode(tokenizer)

        return await self.run_in_thread(tenant, check_and_encode)

    async def compile_grammar(
        self, tenant: str, params: SamplingParams, reasoning: ReasoningMarkup | None = None
    ) -> Matcher | None:
        """Return the grammar of requests with these parameters, compiled in the tenant's turn.

        Args:
            reasoning: where reasoning is in their outputs: the grammar holds behind it.

        Raises:
            InvalidRequestError: it cannot be compiled.
            QueueFullError: the grammars of the tenant's requests take too much memory.
        """
        structured_outputs = params.structured_outputs
        if structured_outputs is None:
            return None
        engine, _ = self._require_ready()
        try:
            return await self._grammar_threads.run(
                tenant, lambda: engine.compile_grammar(structured_outputs, reasoning, tenant)
            )
        except QueueFullError:
            self.metrics.observe_rejection()
            raise

    def hint_parser(
        self,
        tenant: str,
        given: GivenHints | None,
        session_id: str | None,
        identity: Hints | None = None,
        root_session: str | None = None,
    ) -> HintParser | None:
        """Return a reader of a request's hints; None if it has none and its client is unknown.

        Args:
            session_id, identity, root_session: for hints that do not say it; see ``HintParser``.
        """
        if given is None and identity is None:
            return None
        fields, is_clipped = given or GivenHints({}, False)
        return HintParser(
            fields, self._graph_store, session_id, tenant, identity, root_session, is_clipped
        )

    def check_room(self, tenant: str, n: int, num_completions: int) -> None:
        """Raise unless a tenant may submit an HTTP request now; before work is spent on it.

        Args:
            n: completions of each prompt.
            num_completions: of all prompts.

        Raises:
            InvalidRequestError: the queue could never hold them; names the limit.
            ApiError: 429, the tenant's quota of tokens is used up.
            QueueFullError: the tenant's queue is full.
        """
        engine, _ = self._require_ready()
        limits = self.keys.limits_of(tenant)
        for num, bound in (
            (n, limits.max_n),
            (num_completions, limits.max_pending),
            (num_completions, engine.max_pending),
        ):
            if bound is not None and num > bound:
                raise InvalidRequestError(
                    f"a request may ask for at most {bound} completions, got {num}; split it",
                    param="n",
                )
        try:
            self._token_quotas.check(tenant, limits.tokens_per_minute, time.monotonic())
            engine.check_room(tenant, num_completions, limits.max_pending)
        except (ApiError, QueueFullError):
            self.metrics.observe_rejection()
            raise

    def generate(
        self,
        specs: Sequence[RequestSpec],
        num_per_prompt: int,
        tenant: str,
        ids: frozenset[str],
        prompt_edits: frozenset[PromptEdit] = frozenset(),
    ) -> Generation:
        """Submit all requests of one HTTP request, or none: ``num_per_prompt`` for each prompt.

        Args:
            ids: by which the tenant may abort them.
            prompt_edits: that were made to the prompts.

        The caller must close the generation, usually through ``abort_on_disconnect``.

        Raises:
            ApiError, InvalidRequestError, QueueFullError, EngineClosedError.
        """
        engine, mailbox = self._require_ready()
        self.check_room(tenant, num_per_prompt, len(specs))
        self._use_tokens(tenant, sum(len(s.prompt_ids) for s in specs[::num_per_prompt]))
        generation = Generation(
            engine,
            mailbox,
            partial(self._observe, tenant),
            self._open_generations.discard,
            num_per_prompt,
            on_prompt_finished=partial(self.metrics.observe_prompt, num_per_prompt),
            tenant=tenant,
            ids=ids,
        )
        self._open_generations.add(generation)
        try:
            for spec in specs:
                generation.submit(spec)
        except BaseException as error:
            if isinstance(error, QueueFullError):
                self.metrics.observe_rejection()
            generation.close()
            raise
        generation.usage.prompt_edits = prompt_edits
        self.metrics.observe_prompt_edits(prompt_edits)
        return generation

    def abort(self, tenant: str, request_id: str | None) -> int:
        """Abort a tenant's HTTP requests of this id, or all of them; return their number."""
        found = [
            generation
            for generation in self._open_generations
            if generation.tenant == tenant and (request_id is None or request_id in generation.ids)
        ]
        for generation in found:
            generation.abort()
        return len(found)

    def num_open_of(self, tenant: str | None) -> int:
        """Return how many HTTP requests of a tenant wait for output; None: of all tenants."""
        return sum(tenant in (None, open_.tenant) for open_ in self._open_generations)

    @property
    def model_tools(self) -> ModelTools:
        """How the model is told of tools, and how it calls them."""
        return self._model_tools

    @property
    def model_reasoning(self) -> ModelReasoning:
        """How the model reasons, and how it is shown what it reasoned before."""
        return self._model_reasoning

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    async def flush_cache(self) -> bool:
        """Drop all cached blocks; return False if requests prevent it and blocks remain."""
        return await self.call_engine(
            lambda engine: engine.flush_cache() or engine.stats.num_blocks_cached == 0
        )

    async def call_engine(self, call: Callable[[EngineClient], Result]) -> Result:
        """Return ``call(engine)``, run on a thread because the engine answers between two steps."""
        engine, _ = self._require_ready()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._engine_callers, lambda: call(engine))

    async def run_in_thread(self, tenant: str, work: Callable[[], Result]) -> Result:
        """Return ``work()``, which needs milliseconds of CPU, run on the tokenizer threads."""
        return await self._tokenizer_threads.run(tenant, work)

    def fail_if_engine_died(self) -> None:
        """Fail all open generations if the engine thread has died."""
        if not self.is_healthy:
            for generation in list(self._open_generations):
                generation.fail(_engine_died())

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and finish the others; return False if some had to be aborted."""
        self.phase = Phase.DRAINING
        engine = self._engine
        if engine is None or not engine.is_alive:
            return True
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._engine_callers, lambda: engine.drain(timeout_s))

    def close(self) -> None:
        """Stop the engine. Called after the loop has ended."""
        self.bodies.close()
        self._tokenizer_threads.close()
        self._grammar_threads.close()
        self._engine_callers.shutdown(wait=False, cancel_futures=True)
        if self._engine is not None:
            self._engine.close()

    def _refuse_body(self, tenant: str) -> int:
        """Record that a body is refused; return the seconds until a request of its tenant ends."""
        self.metrics.observe_rejection()
        return 1 if self._engine is None else self._engine.retry_after_s(tenant)

    def _observe(self, tenant: str, output: Output) -> None:
        self.metrics.observe(output)
        if output.stats is not None:
            self._use_tokens(tenant, output.stats.num_output_tokens)

    def _use_tokens(self, tenant: str, num_tokens: int) -> None:
        quota = self.keys.limits_of(tenant).tokens_per_minute
        self._token_quotas.use(tenant, quota, num_tokens, time.monotonic())

    def _require_ready(self) -> tuple[EngineClient, Mailbox]:
        if self.phase is Phase.DRAINING:
            raise ApiError(503, "the server is shutting down", code="draining")
        if self._engine is None or self._mailbox is None:
            raise ApiError(503, "the model is still loading; poll GET /ready", code="starting")
        if not self._engine.is_alive:
            raise _engine_died()
        return self._engine, self._mailbox


def num_utf8_bytes(text: str) -> int:
    """Return the length of a text in UTF-8, without a copy of it where it is ASCII."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _served_names(config: ServerConfig, model_name: str) -> tuple[str, ...]:
    """Return the names of the model, each once, the one in answers first."""
    return tuple(dict.fromkeys(config.served_model_names)) or (model_name,)


def _engine_died() -> ApiError:
    return ApiError(503, "the engine has stopped; restart the server", code="engine_dead")
