"""The engine: one loop that plans, dispatches and retires steps. Sole owner of cache and runner.

The loop runs one step ahead: while the device computes step N, the host plans and dispatches step
N + 1, then hands out the tokens of step N. A decoding request's next token therefore comes from
the device's own memory, never through the host, and a request that turns out to have ended costs
one token that is thrown away.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kvflow_jax.cache.policy import POLICIES
from kvflow_jax.cache.prefix_cache import PrefixCache, every_block, has_reader
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.controller import Controller
from kvflow_jax.control.cost_model import CostModel
from kvflow_jax.control.transfer_manager import TransferManager
from kvflow_jax.engine.config import EngineSizes
from kvflow_jax.engine.scheduler import Scheduler, StepPlan
from kvflow_jax.engine.stats import counters, snapshot
from kvflow_jax.engine.step_in_flight import StepInFlight
from kvflow_jax.engine.trace import NoTrace, Tracer
from kvflow_jax.errors import KVFlowError, StepFailedError
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.requests.outputs import EngineStats, FinishReason, Output, TokenLogprobs
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.request_factory import RequestFactory
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.interfaces import (
    Clock,
    NoTransfers,
    MultiStepRunner,
    Runner,
    Transfers,
)
from kvflow_jax.workflow.hints import Hints, HintStatus

log = logging.getLogger(__name__)


class Engine:
    """Serves requests with one runner. Single-threaded: whoever calls ``step`` calls the rest.

    Args:
        sizes: what ``EngineSizes.resolve`` decided.
        runner, clock, transfers: the world it acts through, real or simulated. Without a host tier
            (``sizes.cache``) no transfers are needed.
        tokenizer: for text; None: outputs carry token ids alone.
        vocab_size: token ids of prompts must be below it.
        eos_token_ids: end a text, unless a request ignores them.
        model_name: part of the root of the index.
        seed: from which requests without a seed of their own draw theirs.
        tracer: is told of everything that took time.
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
    ) -> None:
        self.sizes = sizes
        self.clock = clock
        self.cache = self._fresh_cache()
        self.cost_model = CostModel()
        self.scheduler = self._fresh_scheduler()
        self.stats = EngineStats(num_blocks=self.cache.table.num_pages)
        self.tracer = tracer or NoTrace()
        self.runner = runner
        self._repeater = runner if isinstance(runner, MultiStepRunner) else None
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
            sizes.cache.guards and sizes.cache.eviction != "lru" and not is_deterministic
        )
        self.controller = Controller(
            self.cache,
            prefetches=sizes.cache.prefetches,
            backs_up_early=sizes.cache.backs_up_early,
            keeps_everything=sizes.cache.keeps_everything,
            should_load=self._should_load if sizes.cache.guards else None,
            has_lru_fallback=is_guarded,
            demotes_quiet_runs=is_guarded,
            compute_s=self._compute_s if sizes.cache.holds_back and not is_deterministic else None,
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
        self._requests: dict[int, Request] = {}
        self._in_flight: StepInFlight | None = None
        self._next_id = 0
        self._last_step_s = 0.0  # when the last one ended
        self._num_steps = 0
        self._num_generated = 0
        self._num_finished: Counter[str] = Counter()
        self._stalled_since_s: float | None = None
        self._stall_s = 0.0
        self._past = EngineStats()  # counters of schedulers that a failure has replaced

    @property
    def is_idle(self) -> bool:
        return not self._requests and self._in_flight is None

    @property
    def is_waiting(self) -> bool:
        """Whether there is nothing to do until a transfer lands, or a while has passed."""
        is_due = self.transfer_manager.has_in_flight or self.controller.num_throttled > 0
        return is_due and self._in_flight is None

    def check_prompt(self, prompt_ids: np.ndarray, params: SamplingParams) -> None:
        """Raise InvalidRequestError for a prompt that can never run. Any thread may call this."""
        self._request_factory.check(prompt_ids, params)

    def add(
        self,
        prompt_ids: np.ndarray,  # i32[num_prompt]
        params: SamplingParams,
        on_output: Callable[[Output], None],
        *,
        salt: str = "",
        priority: int = 0,
        fairness_key: str = "",
        arrival_s: float | None = None,
        request_id: int | None = None,
        hints: Hints | None = None,
    ) -> int:
        """Queue a request that ``check_prompt`` has passed; its id.

        Requests of equal priority run in turns of their ``client``, then by arrival.
        ``on_output`` is called from ``step``, in order; the last output has a finish reason.
        """
        now = self.clock.now()
        if request_id is None:
            request_id, self._next_id = self._next_id, self._next_id + 1
        request = self._request_factory.create(
            request_id,
            prompt_ids,
            params,
            on_output,
            salt=salt,
            priority=priority,
            fairness_key=fairness_key,
            arrival_s=now if arrival_s is None else arrival_s,
            hints=hints,
        )
        try:
            request.hint_status = self.controller.on_request_added(request, now)
        except Exception:
            log.exception("the hints of request %d could not be used", request_id)
            request.hint_status = HintStatus.IGNORED
        self._requests[request_id] = request
        self.scheduler.add(request)
        return request_id

    def abort(self, request_id: int) -> None:
        """End a request now and free what it holds. Unknown and finished ids are fine."""
        if request := self._requests.get(request_id):
            self._finish(request, FinishReason.ABORT, self.clock.now())
            self._publish_stats()

    def flush_cache(self) -> bool:
        """Drop every cached block; False, and nothing is dropped, while requests are about."""
        if self._requests:
            return False
        self.cache.flush()
        self.controller.reset(self.cache)
        self._publish_stats()
        return True

    def step(self) -> bool:
        """Do one round of the loop; False where there was nothing to do.

        A step that fails ends the requests in it with an error; the engine serves on.
        """
        was_busy = self._in_flight is not None
        if self._in_flight is not None and self._in_flight.plan.prefill_lengths:
            # Behind a step that holds a prompt, wait: running ahead would keep arrivals waiting
            # for two long steps, to hide a host time that is nothing beside one.
            self._retire()
        self._settle_moves()
        ahead_of = self._in_flight
        now = self.clock.now()
        self.controller.expire(now)
        self.controller.prefetcher.plan_offloads(self.transfer_manager)
        plan = self.scheduler.schedule(now)
        for request, num_tokens in self.scheduler.preempted:
            self.controller.on_preempted(request, num_tokens)
        self.scheduler.preempted.clear()
        self.controller.prefetcher.plan_prefetch(self.transfer_manager, len(self.scheduler.running))
        if plan is not None and self._repeater is not None:
            self._repeat(plan, ahead_of, self._repeater)
        launched = self._launch(plan)
        self._note_stall(launched is not None or ahead_of is not None)
        if ahead_of is not None and not self._retire():
            launched = None  # it ran on what the failed step left behind
        self._in_flight = launched
        self._publish_stats()
        return plan is not None or was_busy

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every structure agrees with every other."""
        self.scheduler.check_integrity()
        self.controller.check_integrity()

    def fail_all(self, error: KVFlowError) -> None:
        """End every request with ``error`` and start over with an empty pool and cache."""
        self._past = counters(self.cache, self.scheduler, self._past)
        # Replaced, not tidied up: after a failure nothing of them can be trusted.
        self.cache = self._fresh_cache()
        self.scheduler = self._fresh_scheduler()
        self.transfer_manager.reset(self.cache)
        self.controller.reset(self.cache)
        self.abandon(error)
        self.runner.reset()
        self._publish_stats()

    def abandon(self, error: KVFlowError) -> None:
        """End every request with ``error`` and touch nothing else."""
        self._in_flight = None
        now = self.clock.now()
        for request in list(self._requests.values()):
            request.lease = None
            self._finish(request, FinishReason.ERROR, now, error)

    def _settle_moves(self) -> None:
        """Take in what has landed. What did not arrive is computed by those who waited for it."""
        try:
            failed = self.transfer_manager.publish_finished()
        except Exception as error:
            log.exception("blocks could not be written to the pool")
            self.fail_all(StepFailedError(f"blocks could not be written to the pool: {error}"))
            return
        self.scheduler.uses_host = self.transfer_manager.is_usable(Direction.LOAD)
        self.transfer_manager.set_offload_budget()
        self.tracer.moved(self.transfer_manager.finished)
        self.transfer_manager.finished.clear()
        if failed is not None:
            self.scheduler.give_up_loads(failed, self.clock.now())
            self.transfer_manager.drop_failed()

    def _note_stall(self, is_busy: bool) -> None:
        """Count the time in which requests wait for loads and nothing else runs."""
        now, since_s = self.clock.now(), self._stalled_since_s
        if since_s is not None:
            self._stall_s += now - since_s
            self.tracer.stalled(since_s, now)
        is_stalled = not is_busy and self.scheduler.num_loading > 0
        self._stalled_since_s = now if is_stalled else None

    def _repeat(self, plan: StepPlan, ahead_of: StepInFlight | None, runner: MultiStepRunner) -> None:
        """Let a step that would be planned again and again run as one."""
        if self.transfer_manager.has_plans:
            return  # what is begun with this step will want an answer when it lands
        if ahead_of is not None and ahead_of.ends_a_request:
            return  # who waits for that one to end may ask for something
        most = self.scheduler.most_repeats(plan)
        if most > 1:
            batch, _, _ = self.sizes.shapes.build(plan.chunks)
            self.scheduler.repeat(plan, runner.num_repeats(batch, most), self.clock.now())

    def _launch(self, plan: StepPlan | None) -> StepInFlight | None:
        """Dispatch the moves that were planned, then the step."""
        try:
            self.transfer_manager.dispatch()
        except Exception as error:
            log.exception("moves could not be dispatched")
            self.fail_all(StepFailedError(f"moves could not be dispatched: {error}"))
            return None
        if plan is None:
            return None
        try:
            step = StepInFlight.dispatch(
                plan, self.runner, self._repeater, self.sizes.shapes, self.clock.now()
            )
        except Exception as error:
            log.exception("a step could not be dispatched")
            failure = StepFailedError(f"the step could not be dispatched: {error}")
            if not self.runner.is_intact:
                self.fail_all(failure)
                return None
            now = self.clock.now()
            for request in self.scheduler.retract(plan):
                self._finish(request, FinishReason.ERROR, now, failure)
            return None
        self._num_steps += plan.num_repeats
        return step

    def _retire(self) -> bool:
        """Wait for the step in flight and hand out its tokens; False where it failed."""
        step, self._in_flight = self._in_flight, None
        if step is None:  # a failed dispatch has ended everything
            return False
        try:
            results = step.results()
        except Exception as error:
            # What it wrote, and what came after it on the device, cannot be trusted.
            log.exception("a step failed on the device")
            self.fail_all(StepFailedError(f"the step failed on the device: {error}"))
            return False
        now = self.clock.now()
        self.tracer.step(step.plan, step.dispatched_s, now)
        begun_s = max(step.dispatched_s, self._last_step_s)
        self.cost_model.note_step(sum(step.plan.prefill_lengths), now - begun_s)
        self._last_step_s = now
        for request, tokens, logprobs in results:
            if not request.is_finished:
                self._take_tokens(request, tokens, logprobs, now)
        return True

    def _take_tokens(
        self, request: Request, tokens: list[int], logprobs: tuple[TokenLogprobs, ...], now: float
    ) -> None:
        text, num_before = "", request.num_known
        for token in tokens:
            request.append(token)
            delta = request.take(token)
            text += delta.text
            if delta.finish_reason is not None:
                break
        num_taken = request.num_known - num_before
        self._num_generated += num_taken
        first = request.first_token_s is None
        if first:
            request.first_token_s = now
        self.scheduler.publish(request, now)
        if first:
            self.controller.on_prefill_done(request, now)
        news = Output(
            request.id,
            text,
            tuple(tokens[:num_taken]),
            logprobs=logprobs,
            prompt_logprobs=tuple(request.prompt_logprobs) if first else (),
            stop_reason=delta.stop_reason,
        )
        if delta.finish_reason is not None:
            self._finish(request, delta.finish_reason, now, news=news)
        else:
            self._say(request, news)

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        now: float,
        error: KVFlowError | None = None,
        *,
        news: Output | None = None,
    ) -> None:
        """End a request; ``news`` is what its last token brought, its text complete."""
        if request.is_finished:
            return
        request.finish_reason = reason
        del self._requests[request.id]
        is_done = reason in (FinishReason.STOP, FinishReason.LENGTH)
        try:
            self.controller.on_request_finished(request, now, is_done=is_done)
        except Exception:  # hints are advice: none costs an answer
            log.exception("the hints of request %d could not be used", request.id)
        self.tracer.finished(request, now)
        self.scheduler.remove(request, now)
        self._num_finished[reason.value] += 1
        if news is None:
            news = Output(request.id, request.rest_of_text(), ())
        last = replace(news, finish_reason=reason, stats=request.stats(now), error=error)
        self._say(request, last)

    def _say(self, request: Request, output: Output) -> None:
        try:
            request.on_output(output)
        except Exception:
            # The listener is broken, the others are not.
            log.exception("the listener of request %d failed; the request is aborted", request.id)
            self.abort(request.id)

    def _fresh_scheduler(self) -> Scheduler:
        scheduler = Scheduler(self.cache, self.sizes.shapes)
        if self.sizes.cache.guards:
            scheduler.should_load = self._should_load
        scheduler.can_admit = lambda request: self.controller.can_admit(request)
        return scheduler

    def _should_load(self, num_blocks: int, num_tokens: int, spare_s: float = 0.0) -> bool:
        scheduler = self.scheduler
        num_others = len(scheduler.running) - scheduler.num_loading + len(scheduler.waiting)
        return self.cost_model.should_load(
            self.transfer_manager,
            num_blocks,
            num_tokens,
            num_others=max(0, num_others - 1),
            spare_s=spare_s,
        )

    def _compute_s(self, num_blocks: int) -> float:
        return self.cost_model.compute_s(num_blocks * self.cache.page_size)

    def _fresh_cache(self) -> PrefixCache:
        pool, cache = self.sizes.pool, self.sizes.cache
        return PrefixCache(
            num_pages=pool.num_pages - 1,
            page_size=pool.page_size,
            order=POLICIES[cache.eviction],
            num_host_blocks=cache.num_host_blocks,
            extent_sizes=cache.extent_sizes,
            should_offload=every_block if cache.keeps_everything else has_reader,
        )

    def _publish_stats(self) -> None:
        self.stats = replace(
            snapshot(self.cache, self.scheduler, self.transfer_manager, self._past),
            num_runs=len(self.controller.run_tracker),
            num_runs_held_back=self.controller.num_throttled,
            num_steps=self._num_steps,
            stall_s=self._stall_s,
            generation_tokens=self._num_generated,
            num_finished=dict(self._num_finished),
        )
