"""Random interleavings: structures always agree, and tokens equal those of a cold run."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvflow_jax.control import controller
from kvflow_jax.engine import engine, output_processor
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.reuse.predictors import CONTEXT_TREE
from kvflow_jax.speculation.config import NO_SPECULATION, SpeculativeConfig
from kvflow_jax.workflow.hints import Hints, Reuse
from kvflow_jax.workflow.workflow import Workflow
from tests.support.token_runner import Client, make_engine, run

pytestmark = pytest.mark.slow

TIERED = CacheSettings(num_host_blocks=12, extent_sizes=(1, 4))
GRAPHS = [
    Workflow().edge("a", "b").edge("b", "c").edge("c", "a").freeze(),
    Workflow().edge("a", "b", True).edge("a", "c", True).join("c", "any").edge("b", "c").freeze(),
]


@pytest.fixture(autouse=True)
def errors_in_hints_are_raised(monkeypatch):
    """They would be logged."""
    for module in (controller, engine, output_processor):
        monkeypatch.setattr(module, "hints_as_advice", lambda request: nullcontext())


class Serving(RuleBasedStateMachine):
    cache = CacheSettings()
    repeats = False
    speculation = NO_SPECULATION

    def __init__(self):
        super().__init__()
        self.engine = make_engine(
            num_pages=14,
            max_model_len=48,
            max_num_seqs=3,
            cache=self.cache,
            repeats=self.repeats,
            speculation=self.speculation,
        )
        self.clients: list[Client] = []
        self.failed = False

    # Few different tokens and lengths, so that prompts share prefixes, diverge and continue others.
    @rule(
        head=st.sampled_from([0, 8, 13, 20]),
        tail=st.lists(st.integers(0, 1), max_size=6),
        max_tokens=st.integers(1, 14),
        ignore_eos=st.booleans(),
        salt=st.sampled_from(["", "", "", "tenant"]),
        priority=st.sampled_from([0, 0, 0, 1]),
        hints=st.none()
        | st.builds(
            Hints,
            workflow_id=st.sampled_from([None, "run", "other"]),
            agent_id=st.sampled_from([None, "a", "b", "c"]),
            session_id=st.sampled_from([None, None, "s"]),
            session_final=st.booleans(),
            graph=st.sampled_from([None, *GRAPHS]),
            next_agents=st.sampled_from([{}, {"b": 0.5}]),
            num_fixed=st.sampled_from([None, 0, 8, 17]),
            reuse=st.sampled_from(Reuse),
        ),
    )
    def send_request(self, head, tail, max_tokens, ignore_eos, salt, priority, hints):
        self.clients.append(
            Client(
                self.engine,
                [9] * head + tail + [3],
                max_tokens=max_tokens,
                ignore_eos=ignore_eos,
                salt=salt,
                priority=priority,
                hints=hints,
            )
        )

    @rule(count=st.integers(1, 6))
    def step(self, count):
        for _ in range(count):
            self.engine.step()

    @rule(which=st.integers(0, 100))
    def abort(self, which):
        if self.clients:
            self.engine.abort(self.clients[which % len(self.clients)].id)

    @rule(which=st.integers(0, 100))
    def follow_up(self, which):
        """Continue a conversation with a prompt of its tokens so far and a new one."""
        done = [c for c in self.clients if c.reason in (FinishReason.STOP, FinishReason.LENGTH)]
        if done:
            client = done[which % len(done)]
            prompt = [*client.prompt, *client.tokens, 5]
            if len(prompt) < 40:
                self.clients.append(Client(self.engine, prompt))

    @rule()
    def flush(self):
        self.engine.flush_cache()

    @rule(on_device=st.booleans())
    def fail(self, on_device):
        name = "fail_result" if on_device else "fail_submit"
        setattr(self.engine.runner, name, RuntimeError("injected"))
        self.failed = True
        self.engine.step()

    @rule(is_paused=st.booleans(), count=st.integers(0, 3), fails=st.booleans())
    def transfer(self, is_paused, count, fails):
        """Pause or resume the link; complete or fail some transfers."""
        transfers = self.engine.transfers
        transfers.is_paused = is_paused
        transfers.complete(count, RuntimeError("the link is down") if fails else None)

    @rule(should_load=st.booleans())
    def set_cost_model(self, should_load):
        """Let the cost model prefer loading or computing."""
        self.engine.scheduler.sharing.should_load = lambda num_blocks, num_tokens: should_load

    @rule(count=st.integers(1, 8))
    def evict(self, count):
        cache = self.engine.cache
        cache.evict(min(count, cache.num_idle), 0.0)

    @rule(completed=st.sampled_from([[], ["a"], ["b", "x"]]), ends=st.booleans())
    def advance(self, completed, ends):
        controller = self.engine.controller
        controller.advance_run("", "run", completed, ["c"], self.engine.clock.now())
        if ends:
            controller.end_run("", "run")

    @invariant()
    def structures_agree(self):
        self.engine.check_integrity()

    def teardown(self):
        self.engine.runner.fail_submit = self.engine.runner.fail_result = None
        self.engine.transfers.is_paused = False
        run(self.engine)
        assert self.engine.cache.num_leased == 0
        for client in self.clients:
            assert client.reason is not None
            tokens = client.tokens
            if client.reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert tokens == client.cold
            else:
                assert tokens == client.cold[: len(tokens)]
                assert client.reason is FinishReason.ABORT or self.failed


class ServingWorkflows(Serving):
    cache = replace(TIERED, eviction="kvflow", prefetches=True)


class ServingRecognised(ServingWorkflows):
    cache = replace(ServingWorkflows.cache, predictor=CONTEXT_TREE)

    def teardown(self):
        super().teardown()
        assert not self.engine.controller._calling_runs


class ServingHierarchically(Serving):
    cache = replace(TIERED, offloads_everything=True)


class ServingLateOffloads(Serving):
    cache = replace(TIERED, eviction="kvflow", prefetches=True, offloads_early=False)


class ServingRepeatedSteps(ServingWorkflows):
    repeats = True


class ServingDrafts(ServingWorkflows):
    speculation = SpeculativeConfig(num_speculative_tokens=6)


for machine in (
    Serving,
    ServingWorkflows,
    ServingRecognised,
    ServingHierarchically,
    ServingLateOffloads,
    ServingRepeatedSteps,
    ServingDrafts,
):
    machine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestServing = Serving.TestCase
TestServingWorkflows = ServingWorkflows.TestCase
TestServingRecognised = ServingRecognised.TestCase
TestServingHierarchically = ServingHierarchically.TestCase
TestServingLateOffloads = ServingLateOffloads.TestCase
TestServingRepeatedSteps = ServingRepeatedSteps.TestCase
TestServingDrafts = ServingDrafts.TestCase
