"""The server's state: starting, ready or draining, and the engine once there is one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, TypeVar

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.serve.auth import KeyRing
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.generation import Generation, Mailbox
from kvflow_jax.serve.graph_registry import RegisteredGraphs
from kvflow_jax.serve.metrics import Metrics
from kvflow_jax.serve.protocols import Engine, Tokenizer
from kvflow_jax.workflow.graph_store import GraphStore
from kvflow_jax.workflow.hints import HintReader, Hints

NUM_TOKENIZER_THREADS = 2
NUM_ASKING_THREADS = 32  # each waits for the end of a step, and all that wait are answered then

Result = TypeVar("Result")


class Phase(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Service:
    """What the routes work with. Lives on the server's loop.

    What is asked of the engine is answered after its step, and a long prompt takes the tokenizer
    tens of milliseconds: those run on thread pools, one for each, so that the loop goes on serving
    streams.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.phase = Phase.STARTING
        self.keys = KeyRing(config.api_keys)
        self.model_name = config.served_model_name or config.model
        self.metrics = Metrics(lambda: self.model_name, lambda: self.stats, config.page_size)
        self.registered = RegisteredGraphs()
        self._graphs = GraphStore()
        self._created = int(time.time())
        self._engine: Engine | None = None
        self._tokenizer: Tokenizer | None = None
        self._mailbox: Mailbox | None = None
        self._open: set[Generation] = set()
        self._threads = ThreadPoolExecutor(NUM_TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self._askers = ThreadPoolExecutor(NUM_ASKING_THREADS, thread_name_prefix="ask")

    def start(self, engine: Engine, tokenizer: Tokenizer | None, model_name: str) -> None:
        """Take requests from now on. Called on the loop.

        Without a tokenizer (random weights of a named shape) only prompts of token ids are taken.
        """
        self._mailbox = Mailbox(asyncio.get_running_loop())
        self._engine, self._tokenizer = engine, tokenizer
        self.model_name = self.config.served_model_name or model_name
        if self.phase is Phase.STARTING:  # a signal may have come first
            self.phase = Phase.READY

    @property
    def is_healthy(self) -> bool:
        """False once the engine's thread has died; a server still loading is healthy."""
        return self._engine is None or self._engine.is_alive

    @property
    def is_ready(self) -> bool:
        return self.phase is Phase.READY and self.is_healthy

    @property
    def stats(self) -> EngineStats:
        return EngineStats() if self._engine is None else self._engine.stats

    def check_ready(self) -> None:
        """Refuse work while there is no engine to do it.

        Raises:
            ApiError: 503, starting, draining or dead.
        """
        self._ready()

    def check_answering(self) -> None:
        """Say whether requests are served now; those that come while they are not, wait.

        Raises:
            ApiError: 503, as of ``check_ready``, or naming a process that does not answer.
        """
        engine, _ = self._ready()
        if why := engine.stalled_by:
            raise ApiError(503, f"{why}; requests wait for it", code="stalled")

    def check_model(self, name: str | None) -> None:
        """Accept the served name and the ``--model`` value; no name at all is fine.

        Raises:
            ApiError: 404.
        """
        if name is not None and name not in (self.model_name, self.config.model):
            raise ApiError(
                404,
                f"the model '{name}' does not exist; this server serves '{self.model_name}'",
                param="model",
                code="model_not_found",
            )

    def model_card(self) -> dict[str, Any]:
        engine, _ = self._ready()
        return {
            "id": self.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "kvflow-jax",
            "root": self.config.model,
            "max_model_len": engine.max_model_len,
        }

    async def tokenize(self, texts: Sequence[str], encode: Callable[[Tokenizer], Result]) -> Result:
        """Run ``encode`` with the tokenizer on the pool.

        Args:
            texts: what it will encode, each into one prompt at most; a text that cannot fit the
                context is refused here, because tokenizing it would hold up everyone's.

        Raises:
            InvalidRequestError: a text is too long, the model has no tokenizer, or what ``encode``
                raises.
        """
        engine, _ = self._ready()
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InvalidRequestError(
                f"the model '{self.model_name}' has no tokenizer: send token ids as the prompt of "
                "/v1/completions",
                code="no_tokenizer",
            )
        max_bytes = engine.max_model_len * tokenizer.max_token_bytes
        for text in texts:
            # A character is four bytes at most: the common case encodes nothing here.
            if 4 * len(text) > max_bytes and len(text.encode(errors="replace")) > max_bytes:
                raise InvalidRequestError(
                    f"this model's context is {engine.max_model_len} tokens, which a text of "
                    f"{len(text)} characters cannot fit; shorten it",
                    param="prompt",
                    code="context_length_exceeded",
                )
        return await self.in_thread(lambda: encode(tokenizer))

    def hint_reader(self, data: Any) -> HintReader | None:
        """Of a body's ``agent_hints``; None where it has none."""
        return None if data is None else HintReader(data, self._graphs)

    def check_num_answers(self, num_answers: int) -> None:
        """Refuse what could never be queued at once, before any work is done for it.

        Raises:
            InvalidRequestError: names the bound.
        """
        engine, _ = self._ready()
        if num_answers > engine.max_pending:
            raise InvalidRequestError(
                f"one request may ask for up to {engine.max_pending} completions here, "
                f"got {num_answers}; split it",
                param="n",
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        salt: str,
        priority: int,
        fairness_key: str,
        hints: Sequence[Hints | None],
    ) -> Generation:
        """Submit all prompts or none, each with its hints and once for each of ``params``.

        The caller closes the generation, usually by ``watching``.

        Raises:
            ApiError, InvalidRequestError, QueueFullError, EngineClosedError.
        """
        engine, mailbox = self._ready()
        generation = Generation(
            engine, mailbox, self.metrics.observe, self._open.discard, num_each=len(params)
        )
        self._open.add(generation)
        try:
            for prompt_ids, its_hints in zip(prompts, hints, strict=True):
                for one in params:
                    generation.submit(
                        prompt_ids,
                        one,
                        salt=salt,
                        priority=priority,
                        fairness_key=fairness_key,
                        hints=its_hints,
                    )
        except BaseException:
            generation.close()
            raise
        return generation

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    async def flush_cache(self) -> bool:
        """Drop all cached blocks; True too where there is none to drop."""
        return await self.ask(lambda e: e.flush_cache() or e.stats.num_blocks_cached == 0)

    async def ask(self, question: Callable[[Engine], Result]) -> Result:
        """Put a question to the engine that it answers between two steps."""
        engine, _ = self._ready()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._askers, lambda: question(engine))

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """Do what takes the processor for milliseconds, beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def fail_if_engine_died(self) -> None:
        """Free clients that wait for an engine that is no more."""
        if not self.is_healthy:
            for generation in list(self._open):
                generation.fail(_engine_died())

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests, finish the running ones; False if some were cut off."""
        self.phase = Phase.DRAINING
        engine = self._engine
        if engine is None or not engine.is_alive:
            return True
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._askers, lambda: engine.drain(timeout_s))

    def close(self) -> None:
        """Stop the engine. Called after the loop has ended."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._askers.shutdown(wait=False, cancel_futures=True)
        if self._engine is not None:
            self._engine.close()

    def _ready(self) -> tuple[Engine, Mailbox]:
        if self.phase is Phase.DRAINING:
            raise ApiError(503, "the server is shutting down", code="draining")
        if self._engine is None or self._mailbox is None:
            raise ApiError(503, "the model is still loading; GET /ready says when", code="starting")
        if not self._engine.is_alive:
            raise _engine_died()
        return self._engine, self._mailbox


def _engine_died() -> ApiError:
    return ApiError(503, "the engine has stopped; restart the server", code="engine_dead")
