"""Benchmark the cache without a model: eviction, matching, step updates, planning, memory, copies.

python -m experiments.cache_bench --json FILE
python -m experiments.cache_bench --quick     # small sizes: a check of the command
"""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.measure import arguments, report, seconds
from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.next_read import scheduled
from kvflow_jax.cache.policy import kvflow
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.transfer import DeviceTransfers, Direction, Transfer, measure_bandwidth
from kvflow_jax.cache.transfer_plans import Load
from kvflow_jax.control.readers import AgentReader, RunKey
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.runtime.batch import BatchShapes
from kvflow_jax.runtime.interfaces import WallClock
from kvflow_jax.runtime.sampler import Logprobs
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.workflow import Workflow

REACH = {
    "evict_p99_ms_41k": "<= 1.0",
    "match_ms_8k_1m": "<= 0.5",
    "insert_ms_8k": "<= 1.0",
    "steps_update_ms_1k": "<= 0.5",
    "controller_ms_per_step": "<= 1.0",
    "index_bytes_per_block": "<= 400",
    "transfer_vs_copy_ceiling": ">= 0.80",
}
PAGE = 16
ROOT = RootKey("model")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a check of the command: sizes below those named"
    )
    options = parser.parse_args()
    # Garbage is collected between the timed calls, as in the serving loop.
    gc.disable()
    try:
        figures = quick_figures() if options.quick else full_figures()
    finally:
        gc.enable()
    report(figures, REACH, options.json)
    return 0


def full_figures() -> dict[str, Any]:
    """Measure at the sizes that the names of the figures state."""
    return {
        **eviction(),
        **million_blocks(),
        **steps_update(),
        **controller_step(),
        **transfers(),
    }


def quick_figures() -> dict[str, Any]:
    """Measure at small sizes; the names of the figures overstate them."""
    return {
        "quick": True,
        **eviction(num_leaves=500, num_calls=5),
        **million_blocks(num_blocks=5_000),
        **steps_update(num_runs=10),
        **controller_step(num_running=8, num_agents=50, num_steps=20),
        **transfers(num_extents=2),
    }


def fill(cache: PrefixCache, tokens: np.ndarray, now: float) -> None:
    """Cache ``tokens`` as a finished request would."""
    lease = cache.lease(ROOT, cache.match(ROOT, tokens), now)
    assert cache.grow(lease, len(tokens) // PAGE - len(lease), now)
    cache.publish(lease, tokens)
    cache.release(lease, now)


def eviction(num_leaves: int = 41_000, num_calls: int = 400) -> dict[str, float]:
    """Evict 64 blocks under one parent; the agents' steps-to-execution change between calls."""
    rng = np.random.default_rng(0)
    cache = PrefixCache(num_leaves + 100, PAGE, kvflow)
    shared = np.full(PAGE, 7, np.int32)
    prompts = []
    for i in range(num_leaves):
        own = np.full(PAGE, i, np.int32)
        own[1] = 1
        prompts.append(np.concatenate([shared, own]))
        fill(cache, prompts[-1], float(i))
        cache.set_reader(i, ROOT, prompts[-1], scheduled(float(rng.integers(1, 10))))
    times, now = [], float(num_leaves)
    for _ in range(num_calls):
        for agent in rng.integers(0, num_leaves, 200).tolist():
            cache.set_next_read(agent, scheduled(float(rng.integers(1, 10))))
        start = time.perf_counter()
        cache.evict(64, now)
        times.append(time.perf_counter() - start)
        now += 1
        for i in rng.integers(0, num_leaves, 64).tolist():  # refill the pool
            fill(cache, prompts[i], now)
            cache.set_reader(i, ROOT, prompts[i], scheduled(float(rng.integers(1, 10))))
        gc.collect(0)
    cache.check_integrity()
    return {
        "evict_p99_ms_41k": float(np.percentile(times, 99)) * 1e3,
        "evict_p50_ms_41k": float(np.median(times)) * 1e3,
        "evict_max_ms_41k": max(times) * 1e3,
    }


def million_blocks(num_blocks: int = 1_000_000, blocks_each: int = 64) -> dict[str, float]:
    """Match and insert an 8192-token prompt in a large index; measure the memory of a block."""
    rng = np.random.default_rng(0)
    length = blocks_each * PAGE
    tracemalloc.start()
    cache = PrefixCache(num_blocks + 1024, PAGE, kvflow)
    systems = rng.integers(0, 50_000, (100, length // 2), np.int32)
    while cache.num_indexed < num_blocks - blocks_each:
        own = rng.integers(0, 50_000, length // 2, np.int32)
        fill(cache, np.concatenate([systems[rng.integers(0, 100)], own]), 0.0)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    bytes_per_block = used / cache.num_indexed
    inserts, matches = [], []
    for i in range(30):
        prompt = rng.integers(0, 50_000, 8192, np.int32)
        lease = cache.lease(ROOT, cache.match(ROOT, prompt), float(i))
        cache.grow(lease, 512, float(i))
        start = time.perf_counter()
        cache.publish(lease, prompt)
        inserts.append(time.perf_counter() - start)
        start = time.perf_counter()
        found = cache.match(ROOT, prompt)
        matches.append(time.perf_counter() - start)
        assert len(found) == 512
        cache.release(lease, float(i))
    return {
        "match_ms_8k_1m": float(np.median(matches)) * 1e3,
        "insert_ms_8k": float(np.median(inserts)) * 1e3,
        "index_bytes_per_block": bytes_per_block,
    }


class _NullRunner:
    """A runner that computes nothing, so that only the engine takes time."""

    is_intact = True

    def __init__(self, num_rows: int) -> None:
        self._sampled = np.full(num_rows, 3, np.int32)

    def submit(self, batch: Any) -> _NullRunner:
        return self

    def result(self) -> np.ndarray:
        return self._sampled

    def logprobs(self) -> Logprobs[np.ndarray] | None:
        return None

    def load_sequence_state(self, request: Any) -> None: ...

    def set_token_masks(self, seq_slots: np.ndarray, masks: np.ndarray) -> None: ...

    def score(self, start: int, targets: np.ndarray) -> list[Any]:
        return []

    def read_blocks(self, pages: np.ndarray) -> np.ndarray:
        return pages

    def write_blocks(self, blocks: Any, indices: np.ndarray, pages: np.ndarray) -> None: ...

    def reset(self) -> None: ...


def idle_engine(num_pages: int, max_num_seqs: int = 64) -> Engine:
    """Return an engine whose device takes no time."""
    shapes = BatchShapes.plan(
        max_num_seqs=max_num_seqs,
        max_prefill_tokens=2048,
        tile=128,
        page_size=PAGE,
        pages_per_seq=256,
    )
    max_rows = max(shape.num_rows for shape in shapes.shapes)
    return Engine(
        EngineSizes(
            max_model_len=4096,
            max_waiting=100_000,
            pool=PoolSpec(1, num_pages + 1, PAGE, 1, 1),
            shapes=shapes,
            cache=CacheSettings(eviction="kvflow", prefetches=True),
        ),
        _NullRunner(max_rows),
        WallClock(),
        tokenizer=None,
        vocab_size=50_000,
        seed=0,
    )


def read_by(engine: Engine, tenant: str, agent: str, prefix: np.ndarray) -> None:
    """Let an agent read a cached prefix, i32[n]."""
    hints = Hints(agent_id=agent, num_fixed=len(prefix))
    spec = RequestSpec(prefix, SamplingParams(max_tokens=1), tenant=tenant, hints=hints)
    request = engine._request_factory.create(spec, lambda _: None, request_id=0, arrival_s=0.0)
    prefixes = engine.controller._agent_prefixes
    fixed = prefixes.note_call(AgentReader(tenant, agent), request, None, PAGE, 0.0)
    engine.cache.set_reader(fixed.reader, ROOT, prefix, scheduled(5.0))


def ring(num_agents: int) -> Workflow:
    """Return a workflow whose agents form a cycle."""
    workflow = Workflow()
    for i in range(num_agents):
        workflow.edge(f"agent{i}", f"agent{(i + 1) % num_agents}")
    return workflow


def steps_update(num_runs: int = 1000, num_agents: int = 10) -> dict[str, float]:
    """Time the end of an agent, among many live runs of a graph, up to the next correct victim."""
    figures = {}
    for name, num_tenants in (
        ("steps_update_ms_1k", 1),
        ("steps_update_own_agents_ms_1k", num_runs),
    ):
        engine = idle_engine(num_runs * num_agents * 2 + 64)
        cache, controller = engine.cache, engine.controller
        graph, rng = ring(num_agents).freeze(), np.random.default_rng(0)
        for tenant in range(num_tenants):
            for agent in range(num_agents):
                prompt = np.full(2 * PAGE, tenant * num_agents + agent, np.int32)
                fill(cache, prompt, 0.0)
                read_by(engine, str(tenant), f"agent{agent}", prompt)
        tracker, runs = controller.run_tracker, []
        for i in range(num_runs):
            run = tracker.get_or_begin(RunKey(str(i % num_tenants), f"run{i}"), graph, 0.0)
            for agent in range(int(rng.integers(0, num_agents))):
                tracker.start_call(run, f"agent{agent}")
                tracker.finish_call(run, f"agent{agent}", is_done=True, overrides={})
            assert run.state is not None
            runs.append((run, run.state.ready[0]))
        controller._publish_changes()
        times = []
        for i in rng.integers(0, num_runs, 300).tolist():
            run, agent = runs[i]
            tracker.begin_step()  # else the work on runs that move is left to later steps
            tracker.start_call(run, f"agent{agent}")
            controller._publish_changes()
            start = time.perf_counter()
            tracker.finish_call(run, f"agent{agent}", is_done=True, overrides={})
            controller._publish_changes()
            cache.next_victim()
            times.append(time.perf_counter() - start)
            runs[i] = (run, (agent + 1) % num_agents)
        cache.check_integrity()
        figures[name] = float(np.median(times)) * 1e3
    return figures


def controller_step(
    num_running: int = 64, num_agents: int = 10_000, num_steps: int = 300
) -> dict[str, float]:
    """Time the planning of a step, and a complete step of an engine whose device takes no time."""
    engine = idle_engine(num_agents * 2 + num_running * 80)
    graph = ring(10).freeze()
    for i in range(num_agents // 10):
        for agent in range(10):
            prompt = np.full(2 * PAGE, i * 10 + agent, np.int32)
            fill(engine.cache, prompt, 0.0)
            read_by(engine, str(i), f"agent{agent}", prompt)
        engine.controller.begin_run(str(i), "run", graph, None, 0.0)
    params = SamplingParams(max_tokens=400, temperature=0.0, ignore_eos=True)
    for i in range(num_running):
        hints = Hints(
            workflow_id="run",
            agent_id=f"agent{i % 10}",
            graph=graph,
            num_fixed=32,
            tenant=str(i),
        )
        prompt = np.full(100, i, np.int32)
        spec = RequestSpec(prompt, params, user=str(i), hints=hints)
        engine.add(spec, lambda _: None)
    plans: list[float] = []
    steps: list[float] = []

    def timed(owner: Any, name: str) -> None:
        plan: Callable[..., Any] = getattr(owner, name)

        def measured(*args: Any) -> None:
            start = time.perf_counter()
            plan(*args)
            plans[-1] += time.perf_counter() - start

        setattr(owner, name, measured)

    timed(engine.controller, "expire")
    timed(engine.controller.prefetcher, "plan_offloads")
    timed(engine.controller.prefetcher, "plan_prefetch")
    for _ in range(num_steps):
        plans.append(0.0)
        start = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - start)
    return {
        "controller_ms_per_step": float(np.median(plans[num_steps // 3 :])) * 1e3,
        "engine_step_ms_64_running": float(np.median(steps[num_steps // 3 :])) * 1e3,
    }


def transfers(num_extents: int = 16) -> dict[str, float]:
    """Measure transfers of extents in both directions over one plain copy of the same bytes."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    spec = PoolSpec(30, 257, PAGE, 3, 64)
    length = 16
    pool = KVPool.zeros(spec)
    read = jax.jit(KVPool.gather)
    pages = [np.arange(1 + i * length, 1 + (i + 1) * length, dtype=np.int32) for i in range(16)]
    extents = [jax.block_until_ready(read(pool, extent)) for extent in pages[:num_extents]]
    nbytes = sum(extent.nbytes for extent in extents)
    workers, completed = DeviceTransfers(here, dict.fromkeys(Direction, 1e9)), threading.Event()
    workers.listen(completed.set)

    def move(direction: Direction, extents: list[Any]) -> list[Any]:
        for extent in extents:
            job: Any = Load  # the workers ignore the purpose of a copy
            workers.submit(Transfer(direction, job, extent, extent.nbytes, 0.0))
        moved: list[Any] = []
        while len(moved) < len(extents):
            # Wait, as the engine does: polling in a loop would take CPU time from the workers.
            completed.wait()
            completed.clear()
            moved += [transfer.data for transfer in workers.poll()]
        return moved

    try:
        host = move(Direction.OFFLOAD, extents)
        offload_s = seconds(lambda: move(Direction.OFFLOAD, extents))
        load_s = seconds(lambda: move(Direction.LOAD, host))
    finally:
        workers.close()
    plain = measure_bandwidth(here, nbytes, repeats=5)
    offload, load = nbytes / offload_s, nbytes / load_s
    ratios = (offload / plain[Direction.OFFLOAD], load / plain[Direction.LOAD])
    return {
        "transfer_vs_copy_ceiling": min(ratios),
        "load_gb_per_s": load / 1e9,
        "save_gb_per_s": offload / 1e9,
        "plain_load_gb_per_s": plain[Direction.LOAD] / 1e9,
        "plain_save_gb_per_s": plain[Direction.OFFLOAD] / 1e9,
    }


if __name__ == "__main__":
    raise SystemExit(main())
