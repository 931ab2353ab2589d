"""What the server needs of the engine and the tokenizer; the real ones satisfy it structurally."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kvflow_jax.requests.outputs import EngineStats, Output
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.step_graph import Graph


class Engine(Protocol):
    """``kvflow_jax.engine.engine_thread.EngineThread``. Any thread may call every method."""

    @property
    def max_model_len(self) -> int: ...

    @property
    def max_pending(self) -> int:
        """Requests that may run and wait together."""

    @property
    def is_alive(self) -> bool:
        """False after the engine's thread has died."""

    @property
    def stalled_by(self) -> str:
        """What the engine waits for beyond itself, and may yet get; "" where it goes on."""

    @property
    def stats(self) -> EngineStats:
        """Snapshot published at the end of the last step."""

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_output: Callable[[Output], None],
        *,
        salt: str = "",
        priority: int = 0,
        fairness_key: str = "",
        hints: Hints | None = None,
    ) -> int:
        """Queue a request, return its id at once.

        ``on_output`` runs on the engine's thread, in order, and must not block; its last call has
        a ``finish_reason``.

        Raises:
            InvalidRequestError, QueueFullError, EngineClosedError.
        """

    def abort(self, request_id: int) -> None:
        """Stop a request; unknown and finished ids are fine."""

    def flush_cache(self) -> bool:
        """Drop all unleased cached blocks; False (nothing dropped) while requests are about."""

    def register_graph(self, tenant: str, graph_id: str, graph: Graph) -> None:
        """Keep a workflow under a name for the client's runs."""

    def unregister_graph(self, tenant: str, graph_id: str) -> bool:
        """Forget a workflow; False where there is none of this name."""

    def advance_run(
        self, tenant: str, workflow_id: str, completed: list[str], running: list[str]
    ) -> list[str] | None:
        """Take in a run's progress; agents its graph lacks, None where there is no such run."""

    def end_run(self, tenant: str, workflow_id: str) -> bool:
        """A run is over; False where there is none of this name."""

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and finish the running ones; False if some were cut off."""

    def close(self) -> None: ...


class Tokenizer(Protocol):
    """``kvflow_jax.models.tokenizer.Tokenizer``, called from the server's small thread pool."""

    @property
    def max_token_bytes(self) -> int:
        """UTF-8 bytes of the longest token."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def is_special(self, token_id: int) -> bool:
        """Whether text leaves this token out, unless special tokens are asked for."""

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes a token stands for; may be part of a character."""

    def apply_chat_template(self, messages: list[dict[str, Any]], **kw: Any) -> list[int]:
        """Prompt ids of a chat.

        Raises:
            InvalidRequestError: the template refuses the messages.
        """
