"""Six agents that call one after the other, each with a fixed prefix of 32 tokens of its own."""

from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.workflow import Workflow
from tests.support.token_runner import Client, run

KVFLOW = CacheSettings(eviction="kvflow", prefetches=True, num_host_blocks=200, extent_sizes=(1, 4))
HICACHE = CacheSettings(offloads_everything=True, num_host_blocks=200, extent_sizes=(1, 4))
AGENTS = [f"agent{i}" for i in range(6)]
PREFIX_LEN = 32


class ManualClock:
    """A clock that the test advances."""

    def __init__(self):
        self.time_s = 0.0

    def now(self):
        return self.time_s

    def wait(self, event, timeout_s=None):
        raise AssertionError("nothing waits here")


def cycle():
    workflow = Workflow()
    for agent, successor in zip(AGENTS, AGENTS[1:] + AGENTS[:1], strict=True):
        workflow.edge(agent, successor)
    return workflow.freeze()


def prompt_of(agent, turn):
    """The fixed prefix of an agent, and two tokens that differ by turn."""
    number = AGENTS.index(agent)
    return [10 + number] * PREFIX_LEN + [turn % 40, 1 + turn % 3]


def call(engine, agent, turn, graph, **hints):
    """Run one call to its end; its tokens are those of a cold run."""
    hints = {"workflow_id": "run", "agent_id": agent, "graph": graph, **hints}
    hints.setdefault("num_fixed", PREFIX_LEN)
    client = Client(engine, prompt_of(agent, turn), max_tokens=4, hints=Hints(**hints))
    run(engine)
    assert client.tokens == client.cold
    return client


def run_rounds(engine, num_rounds=4, **hints):
    """Tokens of fixed prefixes that each call after the first round had to recompute."""
    graph, recomputed = cycle(), []
    for turn in range(num_rounds):
        for agent in AGENTS:
            client = call(engine, agent, turn, graph, **hints)
            if turn:
                recomputed.append(PREFIX_LEN - min(client.stats.num_cached_tokens, PREFIX_LEN))
    return recomputed


def run_until_finished(engine, client):
    """Step until one request has finished, with transfers that may not complete."""
    for _ in range(200):
        engine.step()
        engine.check_integrity()
        if client.reason is not None:
            return
    raise AssertionError("the request does not finish")
