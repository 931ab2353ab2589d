"""Next reads by the learned order of calls."""

import pytest

from kvflow_jax.cache.next_read import scheduled
from kvflow_jax.control.call_order import CallOrder
from kvflow_jax.control.learned_order import LearnedOrder
from kvflow_jax.reuse.predictor import HORIZON
from kvflow_jax.workflow.hints import Hints
from tests.support.bare_request import bare_request

PAGE = 4
RING = ("plan", "code", "test")


@pytest.fixture
def order():
    return CallOrder(PAGE, LearnedOrder("context-tree"))


class Calls:
    def __init__(self, order):
        self.order, self.now, self._number = order, 0.0, 0

    def begin(self, agent, workflow_id="run", choice=0):
        self._number += 1
        hints = Hints(agent_id=agent, workflow_id=workflow_id)
        request = bare_request(
            [self._number] * 8, request_id=self._number, hints=hints, choice=choice
        )
        return request, self.order.begin_call(request, self.now)

    def call(self, agent, workflow_id="run", choice=0):
        request, caller = self.begin(agent, workflow_id, choice)
        self.now += 1.0
        self.order.end_call(request, self.now, is_done=True)
        return caller


@pytest.fixture
def calls(order):
    return Calls(order)


def test_nothing_is_forecast_before_anything_is_learned(order, calls):
    caller = calls.call("plan")
    assert order.forecast("", caller.run) == {}


def test_agents_of_a_learned_ring_are_read_in_its_order(order, calls):
    for _ in range(60):
        for agent in RING:
            caller = calls.call(agent)
    reads = order.forecast("", caller.run)
    assert sorted(reads, key=reads.get) == ["plan", "code", "test"]
    assert [reads[agent].distance for agent in RING] == [0.0, 1.0, 2.0]
    assert reads["plan"].miss_chance < 0.1
    # While a call runs, the next one is a step further away.
    _, caller = calls.begin("plan")
    assert order.forecast("", caller.run)["code"].distance == 1.0


def test_an_agent_that_asks_for_several_choices_calls_once(order, calls):
    for _ in range(60):
        for agent in RING:
            for choice in range(4):
                caller = calls.call(agent, choice=choice)
    reads = order.forecast("", caller.run)
    assert [reads[agent].distance for agent in RING] == [0.0, 1.0, 2.0]
    assert sum(order.learned.num_predictions.values()) == 60 * len(RING)


def test_branches_are_read_as_soon_as_each_other_with_their_chances(order, calls):
    for turn in range(200):
        calls.call("plan")
        caller = calls.call("search" if turn % 4 else "recall")
        calls.call("write")
    caller = calls.call("plan")
    reads = order.forecast("", caller.run)
    assert reads["search"].distance == reads["recall"].distance == 0.0
    assert reads["search"] < reads["recall"]
    assert reads["write"].distance == 1.0


def test_another_tenant_has_learned_nothing(order, calls):
    for _ in range(60):
        for agent in RING:
            caller = calls.call(agent)
    assert order.forecast("other", caller.run) == {}


def test_calls_without_an_order_are_not_forecast(order, calls):
    state = 1
    for _ in range(400):
        state = state * 48_271 % 2_147_483_647
        caller = calls.call(f"agent{state % 10}")
    assert order.forecast("", caller.run) == {}


def test_a_likely_read_is_prefetched_and_an_unlikely_one_is_not(order, calls):
    for turn in range(300):
        calls.call("plan")
        calls.call("search" if turn % 8 else "recall")
    caller = calls.call("plan")
    reads = order.forecast("", caller.run)
    assert reads["search"].is_prefetched
    assert not reads["recall"].is_prefetched
    assert reads["plan"] == scheduled(1.0)
    assert len(RING) < HORIZON
