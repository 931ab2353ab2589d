"""The engine: one loop that plans, dispatches and retires steps. Sole owner of cache and runner.

The loop runs one step ahead: while the device computes step N, the host plans and dispatches step
N + 1, then delivers the tokens of step N. The input token of a decode step is therefore read from
device memory, without a round trip to the host. If step N ends a request, the token that step N + 1
computes for it is discarded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kvflow_jax.bounds.tenant_lru import Usage
from kvflow_jax.cache.policy_loader import find_policy
from kvflow_jax.cache.prefix_cache import PrefixCache, every_block, has_reader
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.controller import Controller
from kvflow_jax.control.cost_model import CostModel
from kvflow_jax.control.hints_as_advice import hints_as_advice
from kvflow_jax.control.learned_order import LearnedOrder
from kvflow_jax.control.transfer_manager import TransferManager
from kvflow_jax.engine.output_processor import OutputProcessor
from kvflow_jax.engine.prefill_progress import log_progress
from kvflow_jax.engine.scheduler import Scheduler
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.engine.speculator import Speculator
from kvflow_jax.engine.stats import counters, snapshot
from kvflow_jax.engine.step_in_flight import StepInFlight, load_sequence_states
from kvflow_jax.engine.step_plan import Preempted, StepPlan
from kvflow_jax.engine.trace import NoTrace, Tracer
from kvflow_jax.errors import KVFlowError, StepFailedError
from kvflow_jax.grammar.compiler import GrammarCompiler
from kvflow_jax.grammar.matcher import Matcher
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.reasoning.syntax import ReasoningMarkup
from kvflow_jax.requests.outputs import (
    EngineStats,
    FinishReason,
    Output,
    TokensPerStep,
)
from kvflow_jax.requests.request_factory import RequestFactory
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.runtime.batch import Batch
from kvflow_jax.runtime.interfaces import Clock, NoTransfers, Runner, StepHandle, Transfers
from kvflow_jax.workflow.hints import HintStatus

log = logging.getLogger(__name__)


class Engine:
    """Serves requests with one runner. Single-threaded: call every method from one thread.

    Args:
        sizes: the result of ``EngineSizes.resolve``.
        runner, clock, transfers: real or simulated implementations of ``runtime.interfaces``;
            ``transfers`` may be None without a host tier (``sizes.cache``).
        tokenizer: decodes outputs; None: outputs carry token ids but no text.
        vocab_size: exclusive bound of the token ids in prompts.
        eos_token_ids: token ids that end a text, unless a request ignores them.
        model_name: part of the root key of the index.
        seed: seed of the generator that draws a seed for each request without one.
        tracer: receives every step, transfer, stall and finished request.
        longest_step_s: seconds of the longest step without context, as measured at the start.

    Attributes:
        stats: snapshot published at the end of the last step; any thread may read it.
    """

    def __init__(
        self,
        sizes: EngineSizes,
        runner: Runner,
        clock: Clock,
        transfers: Transfers | None = None,
        *,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        eos_token_ids: tuple[int, ...] = (),
        model_name: str = "",
        seed: int | None = None,
        tracer: Tracer | None = None,
        longest_step_s: float = 0.0,
    ) -> None:
        self.sizes = sizes
        self.vocab_size = vocab_size
        self.longest_step_s = longest_step_s
        self.clock = clock
        self.cache = self._new_cache()
        self.cost_model = CostModel()
        self.scheduler = self._new_scheduler()
        self.stats = EngineStats(num_blocks=self.cache.num_pages)
        self.tracer = tracer or NoTrace()
        self.runner = runner
        self.transfers = transfers or NoTransfers()
        self.transfer_manager = TransferManager(
            self.cache,
            runner,
            self.transfers,
            clock,
            block_bytes=sizes.pool.page_bytes,
        )
        # Deterministic steps hit whole tiles only: fewer blocks than the LRU fallback and admission
        # control expect.
        is_deterministic = sizes.shapes.deterministic
        is_guarded = (
            sizes.cache.safeguards and sizes.cache.eviction != "lru" and not is_deterministic
        )
        self.controller = Controller(
            self.cache,
            prefetches=sizes.cache.prefetches,
            offloads_early=sizes.cache.offloads_early,
            offloads_everything=sizes.cache.offloads_everything,
            should_load=self._should_load if sizes.cache.safeguards else None,
            has_lru_fallback=is_guarded,
            demotes_quiet_runs=is_guarded,
            uses_hints=sizes.cache.uses_hints,
            learned_order=LearnedOrder.open(sizes.cache.predictor, sizes.cache.learned_order),
            compute_s=(
                self._compute_s if sizes.cache.admission_control and not is_deterministic else None
            ),
            decode_s=lambda: self.cost_model.decode_s,
        )
        self._request_factory = RequestFactory(
            sizes.max_model_len,
            vocab_size,
            tokenizer=tokenizer,
            eos_token_ids=eos_token_ids,
            model_name=model_name,
            seed=seed,
        )
        self._grammar_compiler = (
            None
            if tokenizer is None
            else GrammarCompiler(tokenizer, vocab_size, tuple(eos_token_ids))
        )
        self._speculator = Speculator(sizes.speculation, sizes.shapes)
        self._outputs = OutputProcessor(
            self.controller, self._speculator, lambda: self.tracer, lambda: self.scheduler
        )
        self._in_flight: StepInFlight | None = None
        self._next_id = 0
        self._last_step_s = 0.0  # when the last step ended
        self._busy_since_s = 0.0  # when the last step began that found none in flight
        self._num_steps = 0
        self._tokens_per_step = TokensPerStep()
        self._stalled_since_s: float | None = None
        self._stall_s = 0.0
        # Counters of the caches and schedulers that a failure has replaced.
        self._counters_before = EngineStats()

    @property
    def is_idle(self) -> bool:
        """True if there are no requests and no step is in flight."""
        return not self._outputs.requests and self._in_flight is None

    @property
    def is_waiting(self) -> bool:
        """True if no step is in flight, but transfers are, or runs are throttled."""
        may_continue = self.transfer_manager.has_in_flight or self.controller.num_throttled > 0
        return may_continue and self._in_flight is None

    @property
    def _tenant_state(self) -> dict[str, Usage]:
        compiler = self._grammar_compiler
        grammars = {} if compiler is None else {"grammars": compiler.usage}
        return {**self.controller.tenant_state, **grammars}

    def check(self, spec: RequestSpec) -> None:
        """Raise InvalidRequestError for a request that can never run. Any thread may call this."""
        self._request_factory.check(spec)

    def prepare_grammars(self) -> None:
        """Do what the first grammar would wait for; see ``GrammarCompiler.prepare``."""
        if self._grammar_compiler is not None:
            self._grammar_compiler.prepare()

    def compile_grammar(
        self,
        structured_outputs: StructuredOutputsParams,
        reasoning: ReasoningMarkup | None = None,
        tenant: str = "",
    ) -> Matcher:
        """Return the ``grammar`` of requests that ask for it. Any thread may call this; it blocks.

        Args:
            reasoning: where reasoning is in their outputs: the grammar holds behind it.
            tenant: of the requests.

        Raises:
            QueueFullError: the grammars of the tenant's requests take too much memory.
            InvalidRequestError: see ``GrammarCompiler.compile``; or the model has no tokenizer.
        """
        if self._grammar_compiler is None:
            raise structured_outputs.error(
                f"{structured_outputs.param} needs a tokenizer, which this model lacks"
            )
        return self._grammar_compiler.compile(structured_outputs, reasoning, tenant)

    def add(
        self,
        spec: RequestSpec,
        on_output: Callable[[Output], None],
        *,
        arrival_s: float | None = None,
        request_id: int | None = None,
    ) -> int:
        """Queue a request that ``check`` has accepted; return its id.

        Args:
            on_output: called from ``step`` with each output, in order; the last output has a
                finish reason.
            arrival_s: when the request arrived, seconds of the engine's clock; None: now.
            request_id: a unique id; None: the engine picks one.
        """
        now = self.clock.now()
        if request_id is None:
            request_id, self._next_id = self._next_id, self._next_id + 1
        request = self._request_factory.create(
            spec,
            on_output,
            request_id=request_id,
            arrival_s=now if arrival_s is None else arrival_s,
        )
        request.hint_status = HintStatus.IGNORED
        with hints_as_advice(request):
            request.hint_status = self.controller.on_request_added(request, now)
        self._outputs.requests[request_id] = request
        self.scheduler.add(request)
        return request_id

    def abort(self, request_id: int) -> None:
        """End a request now and free its resources. Ignore unknown and finished ids."""
        if request := self._outputs.requests.get(request_id):
            self._outputs.finish(request, FinishReason.ABORT, self.clock.now())
            self._publish_stats()

    def flush_cache(self) -> bool:
        """Drop every cached block. Return False, and drop nothing, while there are requests."""
        if self._outputs.requests:
            return False
        self.cache.flush(self.clock.now())
        self.controller.reset(self.cache)
        self._publish_stats()
        return True

    def retire_early(self) -> None:
        """Wait for the step in flight if the loop should not run ahead of it.

        If it computes prompts, a new request would wait for two long steps, to hide a host time
        that is negligible beside one. And drafts need the tokens before them. Call it before
        adding what has arrived, which then joins the next step.
        """
        step = self._in_flight
        if step is not None and (
            step.plan.prefill_lengths or self._speculator.should_wait(step, self.scheduler.running)
        ):
            self._retire()

    def step(self) -> bool:
        """Run one iteration of the loop; return False if there was nothing to do.

        A step that fails ends its requests with an error; the engine continues to serve.
        """
        was_busy = self._in_flight is not None
        if not was_busy:
            self._busy_since_s = self.clock.now()
        self.retire_early()
        requeued = self._publish_transfers()
        previous = self._in_flight
        plan = self._plan_step(previous, requeued)
        dispatched = self._dispatch(plan, is_ahead=self._in_flight is not None)
        self._record_stall(dispatched is not None or previous is not None)
        if previous is not None and not self._retire():
            dispatched = None  # its inputs came from the failed step
        self._in_flight = dispatched
        self._check_drained()
        self._publish_stats()
        return bool(plan.chunks) or was_busy

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the scheduler, the cache and the controller agree."""
        self.scheduler.check_integrity()
        self.controller.check_integrity()

    def fail_all(self, error: KVFlowError) -> None:
        """End every request with ``error`` and restart with an empty pool and cache."""
        self._counters_before = counters(self.cache, self.scheduler, self._counters_before)
        # Replace the structures rather than clean them up: a failure may have left them corrupt.
        self.cache = self._new_cache()
        self.scheduler = self._new_scheduler()
        self.transfer_manager.reset(self.cache)
        self.controller.reset(self.cache)
        self.fail_requests(error)
        self.runner.reset()
        self._publish_stats()

    def fail_requests(self, error: KVFlowError) -> None:
        """End every request with ``error``, without a reset and without releasing its blocks."""
        self._in_flight = None
        now = self.clock.now()
        for request in list(self._outputs.requests.values()):
            request.lease = None
            self._outputs.finish(request, FinishReason.ERROR, now, error)

    # The phases of a step.

    def _publish_transfers(self) -> list[Preempted]:
        """Publish finished transfers; requeue and return the requests whose loads have failed."""
        try:
            finished = self.transfer_manager.publish_finished()
        except Exception as error:
            log.exception("blocks could not be written to the pool")
            self.fail_all(StepFailedError(f"blocks could not be written to the pool: {error}"))
            return []
        self.scheduler.sharing.uses_host_tier = self.transfer_manager.is_usable(Direction.LOAD)
        self.transfer_manager.set_offload_budget()
        self.tracer.on_transfers(finished.transfers)
        if finished.failed_blocks is None:
            return []
        requeued = self.scheduler.requeue_failed_loads(finished.failed_blocks, self.clock.now())
        self.transfer_manager.drop_failed()
        return requeued

    def _plan_step(self, previous: StepInFlight | None, requeued: Sequence[Preempted]) -> StepPlan:
        """Plan transfers and the next step.

        Args:
            previous: the step in flight, which the next one follows.
            requeued: requests whose loads have failed.
        """
        now = self.clock.now()
        self.controller.expire(now)
        self.controller.prefetcher.plan_offloads(self.transfer_manager)
        plan = self.scheduler.schedule(now)
        self._speculator.add_drafts(plan, self.scheduler, now)
        self._protect([*requeued, *plan.preempted])
        num_running = len(self.scheduler.running)
        self.controller.prefetcher.plan_prefetch(self.transfer_manager, num_running, now)
        return plan

    def _record_stall(self, is_busy: bool) -> None:
        """Add up the time in which requests wait for loads and no step runs."""
        now, since_s = self.clock.now(), self._stalled_since_s
        if since_s is not None:
            self._stall_s += now - since_s
            self.tracer.on_stall(since_s, now)
        is_stalled = not is_busy and self.scheduler.running_requests.num_loading > 0
        self._stalled_since_s = now if is_stalled else None

    def _dispatch(self, plan: StepPlan, *, is_ahead: bool) -> StepInFlight | None:
        """Dispatch the planned transfers, then the step; None if there is none, or it failed.

        Args:
            is_ahead: a step is in flight.
        """
        try:
            self.transfer_manager.dispatch()
        except Exception as error:
            log.exception("transfers could not be dispatched")
            self.fail_all(StepFailedError(f"transfers could not be dispatched: {error}"))
            return None
        if not plan.chunks:
            return None
        failed = load_sequence_states(plan, self.runner)
        try:
            step = StepInFlight.dispatch(
                plan,
                self.runner,
                self._submit,
                self.sizes.shapes,
                self.clock.now(),
                is_ahead=is_ahead,
            )
        except Exception as error:
            log.exception("a step could not be dispatched")
            failure = StepFailedError(f"the step could not be dispatched: {error}")
            if not self.runner.is_intact:
                self.fail_all(failure)
                return None
            now = self.clock.now()
            for request in self.scheduler.unpublish(plan):
                self._outputs.finish(request, FinishReason.ERROR, now, failure)
            return None
        self._num_steps += plan.num_steps
        for request, reason in failed:  # alone: the others of the step go on
            failure = StepFailedError(f"the request cannot be sampled: {reason}")
            self._outputs.finish(request, FinishReason.ERROR, self.clock.now(), failure)
        return step

    def _submit(self, plan: StepPlan, batch: Batch[np.ndarray]) -> StepHandle:
        """Submit the batch of a plan. ``sim.fast_forward`` overrides this."""
        return self.runner.submit(batch)

    def _retire(self) -> bool:
        """Wait for the step in flight and deliver its tokens; return False if it failed."""
        step, self._in_flight = self._in_flight, None
        if step is None:  # a failed dispatch has ended every request
            return False
        try:
            results = step.results()
        except Exception as error:
            # The KV that it and the steps behind it wrote may be wrong: reset the pool.
            log.exception("a step failed on the device")
            self.fail_all(StepFailedError(f"the step failed on the device: {error}"))
            return False
        now = self.clock.now()
        self.tracer.on_step(step.plan, step.dispatched_s, now)
        log_progress(step.plan, now)
        started_s = max(step.dispatched_s, self._last_step_s)
        self.cost_model.note_step(sum(step.plan.prefill_lengths), now - started_s)
        previous_s = max(self._last_step_s, self._busy_since_s)
        self._speculator.on_step(step.shape, now - previous_s, is_ahead=step.is_ahead)
        self._last_step_s = now
        outputs = self._outputs
        num_before = outputs.num_generated + outputs.num_prompt_done
        for sampled in results:
            request = sampled.chunk.request
            if not request.is_finished:
                self._speculator.on_verified(sampled)
                outputs.process(request, sampled.tokens, sampled.logprobs, now)
        if num_tokens := outputs.num_generated + outputs.num_prompt_done - num_before:
            self._tokens_per_step = self._tokens_per_step.add(num_tokens)
        return True

    def _protect(self, preempted: Iterable[Preempted]) -> None:
        """Protect the computed tokens of requests that are back in the queue."""
        for request, num_computed in preempted:
            with hints_as_advice(request):
                self.controller.on_preempted(request, num_computed)

    def _check_drained(self) -> None:
        """Raise IntegrityError if a result of this step was not passed on."""
        self.cache.tiers.check_drained()
        self.controller.run_tracker.check_drained()

    def _new_scheduler(self) -> Scheduler:
        scheduler = Scheduler(self.cache, self.sizes.shapes)
        if self.sizes.cache.safeguards:
            scheduler.sharing.should_load = self._should_load
        scheduler.can_admit = lambda request: self.controller.can_admit(request)
        return scheduler

    def _should_load(self, num_blocks: int, num_tokens: int, spare_s: float = 0.0) -> bool:
        """Return whether to load blocks rather than compute their tokens; see ``CostModel``."""
        scheduler = self.scheduler
        num_going_on = len(scheduler.running) - scheduler.running_requests.num_loading
        num_others = num_going_on + len(scheduler.waiting)
        return self.cost_model.should_load(
            self.transfer_manager,
            num_blocks,
            num_tokens,
            num_others=max(0, num_others - 1),
            spare_s=spare_s,
        )

    def _compute_s(self, num_blocks: int) -> float:
        """Return the estimated seconds to compute that many blocks."""
        return self.cost_model.compute_s(num_blocks * self.cache.page_size)

    def _new_cache(self) -> PrefixCache:
        pool, cache = self.sizes.pool, self.sizes.cache
        return PrefixCache(
            num_pages=pool.num_pages - 1,
            page_size=pool.page_size,
            order=find_policy(cache.eviction),
            num_host_blocks=cache.num_host_blocks,
            extent_sizes=cache.extent_sizes,
            should_offload=every_block if cache.offloads_everything else has_reader,
        )

    def _publish_stats(self) -> None:
        self.stats = snapshot(
            self.cache,
            self.scheduler,
            self.transfer_manager,
            self._counters_before,
            num_runs=self.controller.run_tracker.num_named,
            num_runs_held_back=self.controller.num_throttled,
            tenant_state=self._tenant_state,
            ended_histories=self.controller.ended_histories,
            num_learned_agents=self.controller.learned_order.num_agents,
            predictions=self.controller.learned_order.num_predictions,
            num_steps=self._num_steps,
            stall_s=self._stall_s,
            generation_tokens=self._outputs.num_generated,
            tokens_per_step=self._tokens_per_step,
            drafts=self._speculator.stats,
            num_finished=dict(self._outputs.num_finished),
        )
