"""An engine in virtual time, and the loop that steps it as ``EngineThread`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.engine.cache_config import CacheConfig, CacheSettings
from kvflow_jax.engine.engine_thread import POLL_INTERVAL_S
from kvflow_jax.engine.sizes import GIB, PREFILL_TILE, EngineSizes
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.outputs import EngineStats, Output
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.runtime.batch import BatchShapes
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.sim.fast_forward import FastForwardEngine
from kvflow_jax.sim.profile import ModelShape, Profile
from kvflow_jax.sim.runner import SimRunner
from kvflow_jax.sim.transfers import SimTransfers

_DTYPES = {2: "bfloat16", 4: "float32"}


class Simulation:
    """Serves requests in virtual time. Callbacks of outputs may call ``submit``.

    Args:
        pool_tokens: capacity of the device tier, tokens.
        host_tokens: capacity of the host tier, tokens; ignored if ``cache`` has no host tier.
        max_num_seqs, max_prefill_tokens, max_model_len: see ``EngineConfig``.
        page_size: tokens of a block.
        checks_every: steps between two integrity checks of every structure; 0: no checks.
    """

    def __init__(
        self,
        shape: ModelShape,
        profile: Profile,
        cache: CacheConfig,
        *,
        pool_tokens: int,
        host_tokens: int,
        max_num_seqs: int,
        max_prefill_tokens: int,
        max_model_len: int,
        page_size: int = 16,
        checks_every: int = 0,
    ) -> None:
        pool = PoolSpec(
            num_layers=shape.num_layers,
            num_pages=pool_tokens // page_size + 1,  # and the null page
            page_size=page_size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=_DTYPES[shape.itemsize],
        )
        if cache.mode != "gpu-only":
            # Half a block more, so that rounding down loses none.
            budget = (host_tokens // page_size + 0.5) * pool.page_bytes
            cache = replace(cache, host_cache_gib=budget / GIB)
        num_slots = pool.num_pages - 1
        sizes = EngineSizes(
            max_model_len=max_model_len,
            max_waiting=1 << 20,
            pool=pool,
            shapes=BatchShapes.plan(
                max_num_seqs=max_num_seqs,
                max_prefill_tokens=max_prefill_tokens,
                tile=PREFILL_TILE,
                page_size=page_size,
                pages_per_seq=-(-max_model_len // page_size),
            ),
            cache=CacheSettings.resolve(
                cache, block_bytes=pool.page_bytes, num_pages=num_slots, free_host_bytes=0
            ),
        )
        self.clock = VirtualClock()
        self.runner = SimRunner(self.clock, profile, shape, pool.page_bytes)
        self.engine = FastForwardEngine(
            sizes,
            self.runner,
            self.clock,
            SimTransfers(self.clock, profile),
            tokenizer=None,
            vocab_size=shape.vocab_size,
            model_name=shape.name,
            seed=0,
        )
        self._checks_every, self._num_steps = checks_every, 0
        self._inbox: list[Callable[[], object]] = []

    @property
    def stats(self) -> EngineStats:
        """Counters of the engine as of its last step."""
        return self.engine.stats

    def submit(self, spec: RequestSpec, on_output: Callable[[Output], None]) -> None:
        """Queue a request, which the engine admits before its next step.

        Raises:
            InvalidRequestError: the request can never be served.
        """
        engine, arrival_s = self.engine, self.clock.now()
        engine.check(spec)
        self._inbox.append(lambda: engine.add(spec, on_output, arrival_s=arrival_s))

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Run ``callback`` after ``seconds`` of virtual time."""
        self.clock.schedule(self.clock.now() + seconds, callback)

    def run(self) -> None:
        """Advance until all requests are finished and all transfers are done.

        Raises:
            IntegrityError: deadlock: requests wait, and no event can wake them.
        """
        while self.step():
            pass

    def step(self) -> bool:
        """Advance by one step of the engine, or to the next event; False if none is left.

        Raises:
            IntegrityError: see ``run``.
        """
        engine = self.engine
        engine.retire_early()
        inbox, self._inbox = self._inbox, []
        for add in inbox:
            add()
        is_busy = engine.step()
        self._num_steps += 1
        if self._checks_every and self._num_steps % self._checks_every == 0:
            engine.check_integrity()
        if is_busy or self._inbox:
            return True
        if not engine.is_idle and not engine.is_waiting:
            raise IntegrityError("deadlock: requests wait, none runs, and none can be scheduled")
        if engine.controller.num_throttled:
            due_s, next_s = self.clock.now() + POLL_INTERVAL_S, self.clock.next_event_s
            self.clock.advance_to(due_s if next_s is None else min(due_s, next_s))
            return True
        if self.clock.advance_to_next_event():
            return True
        if engine.is_idle:
            return False
        raise IntegrityError("deadlock: requests wait for a transfer that is not in flight")
