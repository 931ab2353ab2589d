"""The learned order of all tenants: bounds, counts, and its file."""

import logging
import math

import pytest

from kvflow_jax.control.learned_order import ROWS_A_STEP, SAVE_EVERY_S, LearnedOrder
from kvflow_jax.control.learned_order_file import SET_ASIDE, LearnedOrderFile
from kvflow_jax.reuse.predictors import PREDICTORS


def teach(order, tenant="t", calls="abc" * 10, delay_s=1.0):
    for number in range(len(calls)):
        order.observe(tenant, list(calls[:number]), calls[number], delay_s)


def with_file(path, predictor="context-tree", **bounds):
    return LearnedOrder(predictor, file=LearnedOrderFile(path, predictor, **bounds))


def save(order, now):
    """Let steps of the engine pass until the file is written."""
    while order.has_unsaved:
        order.save_if_due(now)
    order._file.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "order.jsonl"


def test_tenants_learn_apart():
    order = LearnedOrder()
    teach(order, "red", "abc" * 10)
    teach(order, "blue", "acb" * 10)
    assert order.forecast("red", ["a"])["b"].steps[0] == pytest.approx(1.0)
    assert order.forecast("blue", ["a"])["c"].steps[0] == pytest.approx(1.0)
    assert order.forecast("green", ["a"]) == {}
    assert order.next_calls("blue", ["a"])["c"].chance == pytest.approx(1.0)
    assert order.next_calls("green", ["a"]) == {}
    assert order.show("green", 10) == []
    assert {row.agent for row in order.show("red", 100)} == set("abc")
    assert order.num_agents == 6
    assert order.usage.num_values == 2
    order.check_integrity()


def test_an_erased_tenant_is_forgotten_and_others_are_not():
    order = LearnedOrder()
    teach(order, "red")
    teach(order, "blue")
    assert order.erase("red")
    assert not order.erase("red")
    assert order.forecast("red", ["a"]) == {}
    assert order.forecast("blue", ["a"])
    assert order.num_agents == 3


def test_predictions_are_counted_before_the_call_is_learned():
    order = LearnedOrder()
    teach(order, calls="abc" * 20)
    counts = order.num_predictions
    assert sum(counts.values()) == 60
    assert counts["right"] > 50
    order.observe("t", ["c", "a"], "c", math.nan)
    assert order.num_predictions["wrong"] == counts["wrong"] + 1
    order.observe("t", ["unknown"], "c", math.nan)
    assert order.num_predictions["withheld"] == counts["withheld"] + 1


def test_tenants_that_were_seen_least_recently_are_dropped():
    order = LearnedOrder(max_bytes=200_000)
    for number in range(100):
        teach(order, f"tenant{number}", "abc")
        order.observe("often", ["a"], "b", 1.0)
    assert order.usage.num_bytes <= 200_000
    assert order.usage.num_evicted > 80
    assert order.show("often", 1)
    assert order.show("tenant99", 1)
    assert not order.show("tenant0", 1)
    assert order.num_agents == 3 * (order.usage.num_values - 1) + 2


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_predictor_survives_a_restart(path, predictor):
    order = with_file(path, predictor)
    teach(order, "red")
    teach(order, "blue", "acb" * 10)
    order.close()
    again = with_file(path, predictor)
    assert again.num_agents == order.num_agents
    for tenant in ("red", "blue"):
        before, after = order.forecast(tenant, ["a"]), again.forecast(tenant, ["a"])
        assert bool(after) == (predictor != "none")
        assert before.keys() == after.keys()
        for agent in before:
            assert after[agent].steps == pytest.approx(before[agent].steps, abs=0.01)
            assert (after[agent].delay is None) == (before[agent].delay is None)


def test_the_file_is_written_when_something_has_changed_and_time_has_passed(path):
    order = with_file(path)
    order.save_if_due(1e6)
    assert not order.has_unsaved
    teach(order)
    order.save_if_due(SAVE_EVERY_S / 2)
    assert not path.exists()
    save(order, SAVE_EVERY_S)
    written = path.stat().st_mtime_ns
    for step in range(100):
        order.save_if_due(1000.0 * step)
    order.close()
    assert path.stat().st_mtime_ns == written


def test_a_step_prepares_a_bounded_part_of_the_file(path):
    order = with_file(path)
    calls = [f"agent{number}" for number in range(1000)]
    for number in range(1, 1000):
        order.observe("t", calls[:number], calls[number], 1.0)
    num_steps = 0
    while order.has_unsaved:
        order.save_if_due(SAVE_EVERY_S)
        num_steps += 1
    order._file.close()
    assert num_steps >= 2 * 999 / ROWS_A_STEP
    assert with_file(path).num_agents == order.num_agents


def test_what_is_erased_leaves_the_file_at_once(path):
    order = with_file(path)
    teach(order, "red")
    teach(order, "blue")
    save(order, SAVE_EVERY_S)
    order.observe("blue", ["a"], "b", 1.0)
    order.save_if_due(2 * SAVE_EVERY_S)
    order.erase("red")
    save(order, 2 * SAVE_EVERY_S)
    again = with_file(path)
    assert not again.forecast("red", ["a"])
    assert again.forecast("blue", ["a"])


def test_a_full_file_holds_the_tenants_that_were_seen_last(path):
    order = with_file(path, max_bytes=3000)
    for number in range(20):
        teach(order, f"tenant{number}")
    order.close()
    assert path.stat().st_size < 4100
    again = with_file(path, max_bytes=3000)
    assert again.forecast("tenant19", ["a"])
    assert not again.forecast("tenant0", ["a"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: LearnedOrder("first-order", file=LearnedOrderFile(path, "first-order")),
        lambda path: rewrite(path, ['["agent","a",1.0]']),
        lambda path: rewrite(path, ['["tenant",7]']),
        lambda path: rewrite(path, ['["tenant","t"]', '["agent","a",-1.0]']),
        lambda path: rewrite(path, ['["tenant","t"]', "[" * 50_000 + "]" * 50_000]),
        lambda path: rewrite(path, ["no json"]),
    ],
)
def test_a_spoilt_file_is_set_aside_and_said_once(path, caplog, spoil):
    order = with_file(path)
    teach(order)
    order.close()
    with caplog.at_level(logging.WARNING):
        spoil(path)
        again = with_file(path)
    assert len(caplog.records) == 1
    assert again.num_agents == 0
    assert path.with_name(path.name + SET_ASIDE).exists()
    teach(again)
    again.close()
    assert with_file(path).num_agents == 3


def rewrite(path, lines):
    file = LearnedOrderFile(path, "context-tree")
    file.write_later(lines)
    file.close()


def test_the_predictor_that_learns_nothing_keeps_nothing():
    order = LearnedOrder("none")
    teach(order)
    assert not order.learns
    assert order.forecast("t", ["a"]) == {}
    assert order.usage.num_values == 0
    assert sum(order.num_predictions.values()) == 0
    order.close()
