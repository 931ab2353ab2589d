"""The engine on its own thread, for callers on any thread."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from kvflow_jax.engine.backlog import Backlog
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.output_channel import OutputChannel
from kvflow_jax.engine.step_watchdog import StepWatchdog
from kvflow_jax.errors import (
    EngineClosedError,
    EngineStalledError,
    IntegrityError,
    InvalidRequestError,
    KVFlowError,
    PolicyError,
    QueueFullError,
    StepFailedError,
)
from kvflow_jax.grammar.matcher import Matcher
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.reasoning.syntax import ReasoningMarkup
from kvflow_jax.requests.outputs import EngineStats, FinishReason, Output
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.reuse.predictor import Transition
from kvflow_jax.workflow.hints import HintStatus
from kvflow_jax.workflow.step_graph import Graph

log = logging.getLogger(__name__)

T = TypeVar("T")

# While transfers are in flight, runs are throttled or the learned order is not saved, the engine
# runs an iteration at least this often, to time transfers out, resume runs and save it.
POLL_INTERVAL_S = 1.0
# How often a caller that waits for a result checks that the engine's thread is alive.
_LIVENESS_INTERVAL_S = 1.0
# How long the end of the engine waits for a step.
_CLOSE_TIMEOUT_S = 5.0
# How long a callback that the engine's thread is in may hold up the end of its request.
_DELIVERY_TIMEOUT_S = 0.1


class EngineThread:
    """Runs an engine's loop. Every method may be called from any thread.

    Callers put commands into one inbox. The engine's thread executes them between two steps, so
    the engine needs no lock.

    Args:
        stalled_by: returns why other processes hold the engine up, "" while they do not; called
            from any thread.
    """

    def __init__(self, engine: Engine, stalled_by: Callable[[], str] = lambda: "") -> None:
        self._engine, self._stalled_by = engine, stalled_by
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._lock = threading.Lock()  # guards the fields up to the next blank line
        # Of pending requests, by id, with their tenants.
        self._channels: dict[int, tuple[str, OutputChannel]] = {}
        self._backlog = Backlog(self.max_pending)
        self._is_open = True
        self._is_closing = False

        self._ids = itertools.count()
        self._idle = threading.Event()
        self._stuck_reason = ""
        self._watchdog = StepWatchdog(
            engine.sizes.step_timeout_s, engine.longest_step_s, self._on_stuck
        )
        engine.transfers.listen(self._wake.set)
        self._thread = threading.Thread(target=self._run, name="kvflow-engine", daemon=True)
        self._thread.start()
        self._watchdog.start()

    @property
    def max_model_len(self) -> int:
        return self._engine.sizes.max_model_len

    @property
    def vocab_size(self) -> int:
        return self._engine.vocab_size

    @property
    def max_pending(self) -> int:
        """Maximum number of running and waiting requests of one tenant together."""
        return self._engine.sizes.max_waiting + self._engine.sizes.shapes.num_seq_slots

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def stalled_by(self) -> str:
        """Why the engine makes no progress, as text; "" while it does.

        Its step does not end, or other processes do not answer.
        """
        return self.stuck_reason or self._stalled_by()

    @property
    def stuck_reason(self) -> str:
        """Which step of this process does not end, as text; "" while there is none."""
        return self._stuck_reason if self._watchdog.is_stuck else ""

    @property
    def stats(self) -> EngineStats:
        """Snapshot published at the end of the last step."""
        return self._engine.stats

    def check(self, spec: RequestSpec) -> None:
        """Raise InvalidRequestError for a request that can never run."""
        self._engine.check(spec)

    def compile_grammar(
        self,
        structured_outputs: StructuredOutputsParams,
        reasoning: ReasoningMarkup | None = None,
        tenant: str = "",
    ) -> Matcher:
        """Return the ``grammar`` of requests that ask for it; see ``Engine.compile_grammar``."""
        try:
            return self._engine.compile_grammar(structured_outputs, reasoning, tenant)
        except QueueFullError as error:
            raise QueueFullError(str(error), self.retry_after_s(tenant)) from None

    def retry_after_s(self, tenant: str) -> int:
        """Return the estimated seconds until the next request of a tenant ends; at least 1."""
        with self._lock:
            return self._backlog.retry_after_s(tenant, self._engine.clock.now())

    def check_room(self, tenant: str, num: int, max_pending: int | None = None) -> None:
        """Raise unless a tenant may submit ``num`` more requests now.

        Args:
            max_pending: a lower bound of this tenant's requests; None: that of all.

        Raises:
            QueueFullError: says when to retry.
        """
        with self._lock:
            self._backlog.check(tenant, num, self._engine.clock.now(), max_pending)

    def submit(self, spec: RequestSpec, on_output: Callable[[Output], None]) -> int:
        """Queue a request and return its id; see ``Engine.add``.

        ``on_output`` is called on the engine's thread, in order; the last output has a finish
        reason. It must not block.

        Raises:
            InvalidRequestError: the request can never run; see ``check``.
            QueueFullError: see ``check_room``.
            EngineStalledError: a step does not end.
            EngineClosedError: the engine drains or has stopped.
        """
        if reason := self.stuck_reason:
            raise EngineStalledError(reason)
        arrival_s = self._engine.clock.now()
        self._engine.check(spec)
        with self._lock:
            if not self._is_open or not self.is_alive:
                raise EngineClosedError("the engine takes no new requests: it is shutting down")
            self._backlog.check(spec.tenant, 1, arrival_s)
            self._backlog.add(spec.tenant, arrival_s)
            request_id = next(self._ids)
            channel = OutputChannel(on_output)
            self._channels[request_id] = spec.tenant, channel
            # Post under the lock: a request posted while the engine is open always gets a last
            # output.
            deliver = partial(self._deliver, channel)
            self._post(partial(self._add, spec, deliver, arrival_s, request_id))
        return request_id

    def abort(self, request_id: int) -> None:
        """End a request and free its resources. Ignore unknown and finished ids."""
        self._post(partial(self._engine.abort, request_id))

    def settle(self) -> None:
        """Wait until every command posted so far is executed and the stats include it."""
        with contextlib.suppress(EngineClosedError):
            self._call(lambda: None)

    def flush_cache(self) -> bool:
        """Drop every cached block. Return False, and drop nothing, while there are requests."""
        return self._call(self._engine.flush_cache)

    def register_graph(self, tenant: str, graph_id: str, graph: Graph) -> None:
        """Register a step graph for the tenant's runs, replacing one of the same id."""
        self._call(partial(self._engine.controller.graphs.register, tenant, graph_id, graph))

    def unregister_graph(self, tenant: str, graph_id: str) -> bool:
        """Remove a registered step graph; return False if there is none of this id."""
        return self._call(partial(self._engine.controller.graphs.unregister, tenant, graph_id))

    def begin_run(
        self, tenant: str, workflow_id: str, graph: Graph | None, graph_id: str | None = None
    ) -> HintStatus:
        """Begin a run of a workflow before its first request."""
        controller, now = self._engine.controller, self._engine.clock.now
        return self._call(lambda: controller.begin_run(tenant, workflow_id, graph, graph_id, now()))

    def advance_run(
        self, tenant: str, workflow_id: str, completed: list[str], running: list[str]
    ) -> list[str] | None:
        """Report a run's progress.

        Args:
            completed, running: names of agents.

        Returns:
            The agents that are not in the run's graph; None if there is no such run.
        """
        controller, now = self._engine.controller, self._engine.clock.now
        return self._call(
            lambda: controller.advance_run(tenant, workflow_id, completed, running, now())
        )

    def end_run(self, tenant: str, workflow_id: str, *, keeps_sessions: bool = False) -> bool:
        """End a run; return False if there is none of this id. See ``Controller.end_run``."""
        end = self._engine.controller.end_run
        return self._call(partial(end, tenant, workflow_id, keeps_sessions=keeps_sessions))

    def learned_order(self, tenant: str, max_rows: int) -> list[Transition]:
        """Return what was learned of the order of a tenant's agents, the most frequent first."""
        return self._call(partial(self._engine.controller.learned_order.show, tenant, max_rows))

    def erase_learned_order(self, tenant: str) -> bool:
        """Forget what was learned of a tenant's agents; return False if that is nothing."""
        return self._call(partial(self._engine.controller.learned_order.erase, tenant))

    def check_integrity(self) -> None:
        """Check the engine between two steps; see ``Engine.check_integrity``."""
        self._call(self._engine.check_integrity)

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and finish the pending ones.

        Returns:
            False if requests were cut off after ``timeout_s`` seconds.
        """
        with self._lock:
            self._is_open = False
        self._post(lambda: None)
        if self._idle.wait(timeout_s) or not self.is_alive:
            return True
        error = EngineClosedError("the server is shutting down")
        try:
            self._call(partial(self._engine.fail_all, error), _CLOSE_TIMEOUT_S)
        except EngineStalledError:
            self._end_pending(error)
        return False

    def close(self) -> None:
        """End all requests with an error and stop the thread. A second call does nothing.

        A thread whose step does not end is left behind; then ``is_alive`` stays True.
        """
        with self._lock:
            self._is_open = False
            self._is_closing = True
        self._wake.set()
        self._thread.join(0 if self.stuck_reason else _CLOSE_TIMEOUT_S)
        if self.is_alive:
            log.error("the engine is closed, though its step has not ended")
            self._end_pending(EngineClosedError("the engine was closed"))
        self._watchdog.stop()

    def _post(self, command: Callable[[], object]) -> None:
        """Execute a command on the engine's thread; do not wait for it."""
        self._inbox.put(command)
        self._wake.set()

    def _call(self, command: Callable[[], T], timeout_s: float = math.inf) -> T:
        """Execute a command on the engine's thread and return its result.

        Raises:
            EngineStalledError: a step does not end, or takes longer than ``timeout_s``.
            EngineClosedError: the engine has stopped.
        """
        future: Future[T] = Future()

        def execute() -> None:
            try:
                future.set_result(command())
            except PolicyError as error:
                # The policy has failed while the cache was being changed.
                future.set_exception(error)
                self._engine.fail_all(StepFailedError(str(error)))
            except Exception as error:
                future.set_exception(error)

        self._post(execute)
        while True:
            try:
                return future.result(timeout=min(_LIVENESS_INTERVAL_S, timeout_s))
            except TimeoutError:
                timeout_s -= _LIVENESS_INTERVAL_S
                if not self.is_alive:
                    raise EngineClosedError("the engine has stopped") from None
                if reason := self.stuck_reason:
                    raise EngineStalledError(reason) from None
                if timeout_s <= 0:
                    raise EngineStalledError("the engine's step takes too long") from None

    def _run(self) -> None:
        reason = "the engine was closed"
        try:
            while not self._is_closing:
                self._run_iteration()
        except BaseException as error:
            log.critical("the engine's thread died", exc_info=True)
            reason = f"the engine has died: {error}"
            raise
        finally:
            with self._lock:
                self._is_open = False
            self._execute_commands()
            self._engine.fail_requests(EngineClosedError(reason))
            self._engine.transfers.close()
            self._engine.controller.learned_order.close()
            self._engine.tracer.close()
            self._watchdog.stop()
            self._idle.set()

    def _run_iteration(self) -> None:
        """Execute the commands in the inbox, then one step; wait if there is nothing to do.

        Commands that arrive during a long step are executed at its end, before the next.
        """
        engine = self._engine
        self._wake.clear()
        self._watchdog.begin_step()
        try:
            engine.retire_early()
            self._execute_commands()
            is_busy = engine.step()
            if not is_busy and not engine.is_idle and not engine.is_waiting:
                raise IntegrityError("requests wait, nothing runs, and none can be scheduled")
        except Exception as error:
            log.exception("the engine failed; it restarts with an empty cache")
            engine.fail_all(StepFailedError(f"the engine failed: {error}"))
            is_busy = True
        finally:
            self._watchdog.end_step()
        if engine.is_idle and not self._is_open:
            self._idle.set()
        if not is_busy:
            # Commands and finished transfers set the event.
            is_polling = engine.is_waiting or engine.controller.learned_order.has_unsaved
            engine.clock.wait(self._wake, POLL_INTERVAL_S if is_polling else None)

    def _execute_commands(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()()

    def _add(
        self,
        spec: RequestSpec,
        on_output: Callable[[Output], None],
        arrival_s: float,
        request_id: int,
    ) -> None:
        try:
            self._engine.add(spec, on_output, arrival_s=arrival_s, request_id=request_id)
        except Exception as error:
            # What one request runs into fails that request only.
            log.exception("request %d could not be queued", request_id)
            failure = InvalidRequestError(f"the request could not be queued: {error}")
            on_output(Output(request_id, "", (), FinishReason.ERROR, error=failure))

    def _deliver(self, channel: OutputChannel, output: Output) -> None:
        """Deliver an output of the engine."""
        if output.finish_reason is not None:
            with self._lock:
                self._forget(output.request_id)
        channel.deliver(output)

    def _on_stuck(self, taken_s: float) -> None:
        """End all requests, for their clients; the engine ends them when its step has ended."""
        self._stuck_reason = f"the engine's step has not ended for {taken_s:.0f} s"
        log.critical("%s; its requests get an error", self._stuck_reason)
        self._end_pending(EngineStalledError(self._stuck_reason))

    def _end_pending(self, error: KVFlowError) -> None:
        """End all requests with ``error``, without the engine's thread."""
        with self._lock:
            pending = dict(self._channels)
            for request_id in pending:
                self._forget(request_id)
        for request_id, (_, channel) in pending.items():
            last = Output(request_id, "", (), FinishReason.ERROR, error=error)
            try:
                channel.deliver(last, _DELIVERY_TIMEOUT_S)
            except Exception:
                log.exception("on_output of request %d failed", request_id)
            self.abort(request_id)

    def _forget(self, request_id: int) -> None:
        """Forget a request that ends, under the lock; does nothing for one that was forgotten."""
        if (entry := self._channels.pop(request_id, None)) is not None:
            self._backlog.end(entry[0], self._engine.clock.now())
