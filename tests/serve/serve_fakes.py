"""An engine driven by the test, and a real server around it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.engine.backlog import Backlog
from kvflow_jax.errors import EngineClosedError, InvalidRequestError, KVFlowError
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.models.control_tokens import ControlTokens
from kvflow_jax.requests.outputs import EngineStats, FinishReason, Output, RequestStats
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.reuse.predictor import Transition
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.server import Server, bind
from kvflow_jax.workflow.hints import Hints, HintStatus
from kvflow_jax.workflow.step_graph import Graph

TIMEOUT_S = 20.0  # reached only by a test that fails


@dataclass
class FakeRequest:
    request_id: int
    spec: RequestSpec
    on_output: Callable[[Output], None]
    num_output_tokens: int = 0

    @property
    def prompt_ids(self) -> list[int]:
        return self.spec.prompt_ids.tolist()

    @property
    def prompt(self) -> str:
        return "".join(map(chr, self.prompt_ids))

    @property
    def params(self) -> SamplingParams:
        return self.spec.params

    @property
    def hints(self) -> Hints | None:
        return self.spec.hints


class FakeEngine:
    """An engine without a model; like the real one, it calls ``on_output`` on its own thread.

    Answers each request with ``reply`` immediately. With ``reply`` None it emits ``first_texts``,
    and the test emits the rest.
    """

    max_model_len = 512
    max_pending = 8
    vocab_size = 0x110000

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="fake-engine")
        self._thread.start()
        self.num_submitted = 0
        self.reset()

    def reset(self) -> None:
        self.reply: Sequence[str] | Callable[[FakeRequest], Sequence[str]] | None = ["Hel", "lo"]
        self.first_texts: Sequence[str] = ()
        self.submit_error: KVFlowError | None = None
        self.stats = EngineStats(num_blocks=100)
        self.is_alive = True
        self.stalled_by = self.stuck_reason = ""
        self.is_closed = False
        self.can_flush = True
        self.num_cached = self.num_cached_host = 0
        self.graphs: dict[tuple[str, str], Graph] = {}
        self.transitions: dict[str, list[Transition]] = {}  # learned, by tenant
        self.runs: dict[tuple[str, str], set[str]] = {}  # tenant and run -> agents of its graph
        self.kept_sessions: list[bool] = []  # of the runs that were ended
        self.advanced: list[tuple[str, str, list[str], list[str]]] = []
        self.requests: dict[int, FakeRequest] = {}
        self.running: dict[int, FakeRequest] = {}
        self.aborted: list[int] = []
        self.backlog = Backlog(self.max_pending)

    # Called by the server.

    def check_room(self, tenant: str, num: int, max_pending: int | None = None) -> None:
        self.backlog.check(tenant, num, 10.0, max_pending)

    def submit(self, spec: RequestSpec, on_output: Callable[[Output], None]) -> int:
        if self.is_closed:
            raise EngineClosedError("the engine is draining")
        if self.submit_error is not None:
            raise self.submit_error
        num_prompt = len(spec.prompt_ids)
        if not num_prompt:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if num_prompt >= self.max_model_len:
            raise InvalidRequestError("prompt too long", "prompt", "context_length_exceeded")
        if spec.prompt_ids.max() >= self.vocab_size:
            raise InvalidRequestError("token id out of vocabulary", param="prompt")
        with self._changed:
            request_id = self.num_submitted
            self.num_submitted += 1
            request = FakeRequest(request_id, spec, on_output)
            self.requests[request_id] = self.running[request_id] = request
            self._changed.notify_all()
        reply = self.reply(request) if callable(self.reply) else self.reply
        for text in self.first_texts if reply is None else reply:
            self.emit(request, text)
        if reply is not None:
            self.finish(request)
        return request_id

    def compile_grammar(
        self,
        structured_outputs: StructuredOutputsParams,
        reasoning: object = None,
        tenant: str = "",
    ) -> Any:
        """Return a token that stands for the grammar in the requests."""
        if structured_outputs.regex == "(":
            raise structured_outputs.error("unclosed group")
        return structured_outputs

    def retry_after_s(self, tenant: str) -> int:
        return 7

    def abort(self, request_id: int) -> None:
        with self._changed:
            self.aborted.append(request_id)
            request = self.running.get(request_id)
            self._changed.notify_all()
        if request is not None:
            self.finish(request, FinishReason.ABORT)

    def flush_cache(self) -> bool:
        return self.can_flush

    def register_graph(self, tenant: str, graph_id: str, graph: Graph) -> None:
        self.graphs[tenant, graph_id] = graph

    def unregister_graph(self, tenant: str, graph_id: str) -> bool:
        return self.graphs.pop((tenant, graph_id), None) is not None

    def learned_order(self, tenant: str, max_rows: int) -> list[Transition]:
        return self.transitions.get(tenant, [])[:max_rows]

    def erase_learned_order(self, tenant: str) -> bool:
        return self.transitions.pop(tenant, None) is not None

    def advance_run(
        self, tenant: str, workflow_id: str, completed: list[str], running: list[str]
    ) -> list[str] | None:
        known = self.runs.get((tenant, workflow_id))
        if known is None:
            return None
        self.advanced.append((tenant, workflow_id, completed, running))
        return [agent for agent in [*completed, *running] if agent not in known]

    def end_run(self, tenant: str, workflow_id: str, *, keeps_sessions: bool = False) -> bool:
        self.kept_sessions.append(keeps_sessions)
        return self.runs.pop((tenant, workflow_id), None) is not None

    def drain(self, timeout_s: float) -> bool:
        self.is_closed = True
        with self._changed:
            self._changed.notify_all()
            finished = self._changed.wait_for(lambda: not self.running, timeout_s)
        for request in list(self.running.values()):
            self.finish(request, FinishReason.ABORT)
        self.settle()
        return finished

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()
        self.is_alive = False

    # Called by tests.

    def emit(self, request: FakeRequest, text: str) -> None:
        self._jobs.put(lambda: self._emit(request, text))

    def finish(
        self,
        request: FakeRequest,
        reason: FinishReason = FinishReason.STOP,
        text: str = "",
        error: KVFlowError | None = None,
    ) -> None:
        self._jobs.put(lambda: self._finish(request, reason, text, error))

    def settle(self) -> None:
        """Wait until all outputs emitted so far have been delivered."""
        done = threading.Event()
        self._jobs.put(done.set)
        assert done.wait(TIMEOUT_S)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds, checked whenever the engine's state changes."""
        with self._changed:
            assert self._changed.wait_for(condition, TIMEOUT_S)

    def wait_for_requests(self, number: int) -> list[FakeRequest]:
        self.wait_for(lambda: len(self.requests) >= number)
        return list(self.requests.values())

    @property
    def last(self) -> FakeRequest:
        return list(self.requests.values())[-1]

    def _loop(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _emit(self, request: FakeRequest, text: str) -> None:
        request.num_output_tokens += 1
        status = _status(request.hints)
        request.on_output(Output(request.request_id, text, (1,), hint_status=status))

    def _finish(
        self, request: FakeRequest, reason: FinishReason, text: str, error: KVFlowError | None
    ) -> None:
        if request.request_id not in self.running:
            return
        stats = RequestStats(
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=self.num_cached,
            num_cached_host_tokens=self.num_cached_host,
            num_computed_tokens=0,
            num_output_tokens=request.num_output_tokens,
            num_preemptions=0,
            hint_status=_status(request.hints),
            arrival_s=10.0,
            first_scheduled_s=10.25,
            first_token_s=10.75 if request.num_output_tokens else None,
            finished_s=12.75,
            max_tokens=request.params.max_tokens or self.max_model_len - len(request.prompt_ids),
        )
        with self._changed:
            del self.running[request.request_id]
            finished = dict(self.stats.num_finished)
            finished[reason.value] = finished.get(reason.value, 0) + 1
            self.stats = replace(self.stats, num_finished=finished)
            self._changed.notify_all()
        output = Output(request.request_id, text, (), reason, stats, error)
        request.on_output(replace(output, hint_status=stats.hint_status))


def _status(hints: Hints | None) -> HintStatus | None:
    """Return the outcome of hints as the controller does, except for unregistered graphs."""
    if hints is None:
        return None
    if hints.is_empty and hints.priority is None:
        return HintStatus.IGNORED
    is_clipped = hints.is_clipped or hints.has_unused
    return HintStatus.CLIPPED if is_clipped else HintStatus.APPLIED


_IGNORED = "add_generation_prompt"  # the template of FakeTokenizer has no such prompt


class FakeTokenizer:
    """One token per character."""

    max_token_bytes = 4
    chat_template = "{{ messages }}{{ tools }}"
    control_tokens = ControlTokens(Backend(BPE()), "")

    def __init__(self) -> None:
        self.encoded: list[str] = []
        self.num_rendered = 0
        self.rejects_system_only = False  # messages without a user message

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        self.encoded.append(text)
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def token_strs(self, ids: Sequence[int]) -> list[str]:
        return [chr(token_id) for token_id in ids]

    def info(self) -> dict[str, Any]:
        return {"tokenizer_class": "FakeTokenizer"}

    def is_special(self, token_id: int) -> bool:
        return False

    def special_token_ids(self, texts: Iterable[str]) -> dict[str, int]:
        return {}

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()

    def apply_chat_template(self, messages: list[dict[str, Any]], **kw: Any) -> list[int]:
        if messages[-1]["content"] == "explode":
            raise RuntimeError("secret detail")
        self.num_rendered += 1
        if self.rejects_system_only and messages[-1]["role"] == "system":
            raise InvalidRequestError("the template requires a user message", param="messages")
        if messages[0]["role"] == "tool":
            raise InvalidRequestError("the template requires a call first", param="messages")
        lines = ["^"] if kw.pop("add_special_tokens", False) else []
        lines += [f"<{m['role']}>{m['content']}" for m in messages]
        lines += [f"[calls {m['tool_calls']}]" for m in messages if "tool_calls" in m]
        lines += [f"[{name}={value}]" for name, value in kw.items() if name != _IGNORED]
        return self.encode("".join(lines))


class WatchedServer(Server):
    """A server that sets ``loaded`` once the model is loaded."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loaded = threading.Event()

    def _on_loaded(self, *args: Any) -> None:
        super()._on_loaded(*args)
        self.loaded.set()


class LiveServer:
    """A server on a loopback port, with a thread that runs it."""

    def __init__(
        self,
        build: Callable[[FakeEngine], tuple[Any, ...]] | None = None,
        **settings: Any,
    ) -> None:
        self.engine = FakeEngine()
        self.config = ServerConfig(port=0, load=LoadConfig("tiny-dir"), **settings)
        self.tokenizer = FakeTokenizer()
        build = build or (lambda engine: (engine, self.tokenizer, "tiny", {}))
        listener = bind("127.0.0.1", 0)
        self.server = WatchedServer(self.config, listener, lambda config: build(self.engine))
        self.url = self.server.url
        self.exit_code: int | None = None
        self._thread = threading.Thread(target=self._run, name="server")
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def wait_loaded(self) -> None:
        assert self.server.loaded.wait(TIMEOUT_S)

    def request_stop(self) -> None:
        self.server.should_exit = True

    def join(self) -> None:
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self.exit_code = self.server.serve_until_stopped()


@contextmanager
def live_server(**settings: Any) -> Iterator[LiveServer]:
    """Yield a ready server; stop it at the end."""
    live = LiveServer(**settings)
    try:
        live.wait_loaded()
        yield live
    finally:
        live.request_stop()
        live.join()
        live.engine.close()
