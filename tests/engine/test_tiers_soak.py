"""A soak test: random agents over a slow and faulty link, whose tokens equal those of a cold run.

The state machines of ``test_engine_random`` shrink their failures. This test runs longer, so that
prefixes are offloaded and loaded again, and loads are cancelled and lost.
"""

from collections import Counter
from itertools import count

import numpy as np
import pytest

from kvflow_jax.control import cost_model
from kvflow_jax.control.admission import admission_control
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.workflow import Workflow
from tests.support.token_runner import Client, make_engine, run

pytestmark = pytest.mark.slow

AGENTS = "abcdef"
GRAPH = Workflow()
for agent, following in zip(AGENTS, AGENTS[1:] + AGENTS[:1], strict=True):
    GRAPH.edge(agent, following)
BRANCHES = Workflow()
for agent in "bcde":
    BRANCHES.edge("a", agent, conditional=True).edge(agent, "f")
BRANCHES.join("f", "any").edge("f", "a")

COMMON = {"num_host_blocks": 20, "extent_sizes": (1, 4)}
SETTINGS = {
    "kvflow": CacheSettings(eviction="kvflow", prefetches=True, **COMMON),
    "kvflow, late backups": CacheSettings(
        eviction="kvflow", prefetches=True, offloads_early=False, **COMMON
    ),
    "hicache": CacheSettings(offloads_everything=True, **COMMON),
    "lru with prefetch": CacheSettings(prefetches=True, **COMMON),
    "admission control": CacheSettings(
        eviction="kvflow-cost", prefetches=True, admission_control=True, **COMMON
    ),
}


class Clock:
    """A clock that advances by a millisecond whenever it is read."""

    def __init__(self):
        self._ticks = count()

    def now(self):
        return next(self._ticks) * 1e-3


@pytest.fixture(autouse=True)
def _short_time_constants(monkeypatch):
    """Adapt cost model and admission control to runs that last for seconds."""
    monkeypatch.setattr(cost_model, "_MIN_TOKENS", 1)
    limits = {
        "HIGH_WATERMARK": 1e-2,
        "LOW_WATERMARK": 1e-3,
        "AVERAGING_S": 0.1,
        "LIMIT_RATE": 10.0,
        "MIN_LIMIT": 0.3,
    }
    for name, value in (
        limits | {"MIN_SLICE_S": 0.1, "SLICE_FACTOR": 1, "_UPDATE_EVERY_S": 0.01}
    ).items():
        monkeypatch.setattr(admission_control, name, value)
    # Steps of the test take no time, so the estimated slowdown of smaller batches has no meaning.
    monkeypatch.setattr(admission_control.AdmissionControl, "_slowdown", lambda *_: 0.0)


class Soak:
    def __init__(self, seed, settings):
        self.rng = np.random.default_rng(seed)
        self.engine = make_engine(num_pages=20, max_model_len=48, cache=settings, clock=Clock())
        self.num_keys = 4 if settings.admission_control else 1  # runs of one tenant share prefixes
        self.engine.transfers.is_paused = True
        self.clients = []
        self.counts = Counter()
        for target, name in (
            (self.engine.cache._residency, "cancel"),
            (self.engine.cache._residency, "complete_load"),
            (self.engine.cache._residency, "drop_lost_extent"),
            (self.engine.scheduler, "requeue_failed_loads"),
            (self.engine.scheduler, "_preempt"),
        ):
            self.count(target, name)

    def count(self, target, name):
        """Count the calls of a method; of ``cancel``, those that freed a page."""
        function = getattr(target, name)

        def counted(*args, **kwargs):
            result = function(*args, **kwargs)
            self.counts[name] += bool(result) if name == "cancel" else 1
            return result

        setattr(target, name, counted)

    def send_request(self):
        rng = self.rng
        which = int(rng.integers(0, len(AGENTS)))
        fixed = [9] * int(rng.choice([0, 8])) + [10 + which] * 12
        prompt = fixed + rng.integers(0, 2, int(rng.integers(1, 6))).tolist()
        graph = (GRAPH if rng.random() < 0.5 else BRANCHES).freeze()
        hints = Hints(
            workflow_id=str(rng.integers(0, 2)),
            agent_id=AGENTS[which],
            session_id="s" if rng.random() < 0.1 else None,
            graph=graph,
            num_fixed=len(fixed),
        )
        max_tokens = int(rng.integers(1, 10))
        key = str(rng.integers(0, self.num_keys))
        self.clients.append(
            Client(self.engine, prompt, max_tokens=max_tokens, hints=hints, tenant=key)
        )

    def run(self, num_actions):
        engine, rng = self.engine, self.rng
        for _ in range(num_actions):
            action = rng.random()
            if action < 0.2 and sum(client.reason is None for client in self.clients) < 6:
                self.send_request()
            elif action < 0.25 and self.clients:
                engine.abort(self.clients[int(rng.integers(0, len(self.clients)))].id)
            elif action < 0.45:
                engine.transfers.complete(int(rng.integers(1, 4)))
            elif action < 0.48:
                engine.transfers.complete(1, RuntimeError("the link is down"))
            elif action < 0.50:
                engine.flush_cache()
            else:
                engine.step()
            engine.check_integrity()
            self.counts["throttled"] += engine.controller.num_throttled > 0

    def finish(self):
        self.engine.transfers.is_paused = False
        run(self.engine)
        assert self.engine.cache.num_leased == 0
        for client in self.clients:
            if client.reason is FinishReason.ABORT:
                assert client.tokens == client.cold[: len(client.tokens)]
            else:
                assert client.reason in (FinishReason.STOP, FinishReason.LENGTH)
                assert client.tokens == client.cold


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_those_of_a_cold_run_whatever_the_link_does(name):
    counts = Counter()
    for seed in range(25):
        soak = Soak(seed, SETTINGS[name])
        soak.run(250)
        soak.finish()
        counts += soak.counts
    # The soak must have reached each of these.
    expected = {"complete_load", "drop_lost_extent", "requeue_failed_loads"}
    expected.add("throttled" if SETTINGS[name].admission_control else "_preempt")
    if SETTINGS[name].prefetches:
        expected.add("cancel")
    assert expected <= counts.keys(), counts
