"""Interfaces of the engine and the tokenizer that the server uses (structural types)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from kvflow_jax.grammar.matcher import Matcher
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.reasoning.syntax import ReasoningMarkup
from kvflow_jax.requests.outputs import EngineStats, Output
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.reuse.predictor import Transition
from kvflow_jax.workflow.step_graph import Graph


class EngineClient(Protocol):
    """``kvflow_jax.engine.engine_thread.EngineThread``. Every method is thread-safe."""

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int:
        """Exclusive bound of token ids."""
        ...

    @property
    def max_pending(self) -> int:
        """Maximum number of running and queued requests of one tenant together."""
        ...

    @property
    def is_alive(self) -> bool:
        """False once the engine thread has died."""
        ...

    @property
    def stalled_by(self) -> str:
        """Why the engine is stalled, such as a silent process of its group; "" if it is not."""
        ...

    @property
    def stuck_reason(self) -> str:
        """Which step of this process does not end, as text; "" while there is none."""
        ...

    @property
    def stats(self) -> EngineStats:
        """Snapshot published at the end of the last step."""
        ...

    def compile_grammar(
        self,
        structured_outputs: StructuredOutputsParams,
        reasoning: ReasoningMarkup | None = None,
        tenant: str = "",
    ) -> Matcher:
        """Compile a grammar for the model's tokens; it may block for seconds.

        Args:
            reasoning: where reasoning is in the outputs: the grammar holds behind it.
            tenant: of the requests.

        Raises:
            QueueFullError: the grammars of the tenant's requests take too much memory.
            InvalidRequestError: it cannot be compiled.
        """
        ...

    def check_room(self, tenant: str, num: int, max_pending: int | None = None) -> None:
        """Raise QueueFullError unless a tenant may submit ``num`` more requests now.

        Args:
            max_pending: a lower bound of this tenant's requests; None: that of all.
        """

    def retry_after_s(self, tenant: str) -> int:
        """Return the estimated seconds until the next request of a tenant ends; at least 1."""
        ...

    def submit(self, spec: RequestSpec, on_output: Callable[[Output], None]) -> int:
        """Queue a request and return its id immediately.

        Calls ``on_output`` on the engine thread, in order; it must not block. The last output has
        a ``finish_reason``.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError.
        """
        ...

    def abort(self, request_id: int) -> None:
        """Stop a request; ignore unknown ids and those of finished requests."""

    def flush_cache(self) -> bool:
        """Drop all cached blocks; return False and drop none while there are requests."""
        ...

    def register_graph(self, tenant: str, graph_id: str, graph: Graph) -> None:
        """Register a step graph under a name for the tenant's runs."""

    def unregister_graph(self, tenant: str, graph_id: str) -> bool:
        """Remove a step graph; return False if there is none of this name."""
        ...

    def learned_order(self, tenant: str, max_rows: int) -> list[Transition]:
        """Return what was learned of the order of a tenant's agents, the most frequent first."""
        ...

    def erase_learned_order(self, tenant: str) -> bool:
        """Forget what was learned of a tenant's agents; return False if that is nothing."""
        ...

    def advance_run(
        self, tenant: str, workflow_id: str, completed: list[str], running: list[str]
    ) -> list[str] | None:
        """Record a run's progress; return agents missing from its graph, None for no such run."""
        ...

    def end_run(self, tenant: str, workflow_id: str, *, keeps_sessions: bool = False) -> bool:
        """End a run; return False if there is none of this name."""
        ...

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and finish the others; return False if some had to be aborted."""
        ...

    def close(self) -> None: ...


class TextMarks(Protocol):
    """``kvflow_jax.models.control_tokens.ControlTokens``."""

    def mark(self, value: Any, *, is_answer: bool = False) -> Any:
        """Return JSON whose strings are marked where they spell control tokens."""
        ...

    def mark_messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the messages of a chat with their strings marked."""
        ...


class Tokenizer(Protocol):
    """``kvflow_jax.models.tokenizer.Tokenizer``, called from the tokenizer threads."""

    @property
    def max_token_bytes(self) -> int:
        """Length of the longest token in UTF-8 bytes."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The chat template, the one for tools if there are several; None if there is none."""
        ...

    @property
    def control_tokens(self) -> TextMarks:
        """Marks texts of a chat, so that control tokens that they spell stay text."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_strs(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens as the vocabulary writes them."""
        ...

    def info(self) -> dict[str, Any]:
        """Return the fields of the tokenizer's configuration, as JSON."""
        ...

    def is_special(self, token_id: int) -> bool:
        """True if ``decode`` omits this token when it skips special tokens."""
        ...

    def special_token_ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Return those texts that are special tokens, with their ids."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token, which may be part of a character."""
        ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        **template_args: object,
    ) -> list[int]:
        """Return the prompt ids of a chat.

        Raises:
            InvalidRequestError: the template rejects the messages.
        """
        ...


# The engine, its tokenizer, the model's own name, and the model's sampling parameters for requests
# that leave them out, by name of the parameter.
BuiltEngine = tuple[EngineClient, Tokenizer | None, str, Mapping[str, int | float]]
