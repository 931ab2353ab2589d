"""Hints are applied only if every field that was sent could be used."""

import pytest

from kvflow_jax.control.hint_outcome import outcome_of, priority_outcome
from kvflow_jax.control.registered_graphs import NamedGraph
from kvflow_jax.workflow.hints import Hints, HintStatus
from tests.support.step_graphs import chain

GRAPH, OTHER = chain("a", "b").freeze(), chain("a", "c").freeze()
CALL = {"workflow_id": "w", "agent_id": "a"}
NO_GRAPH = NamedGraph(None, True)


def outcome(hints, named=NO_GRAPH, run_graph=None, *, follows_order=True, prefetches=True):
    return outcome_of(hints, named, run_graph, follows_order=follows_order, prefetches=prefetches)


def test_the_graph_of_hints_is_applied_if_the_run_follows_it():
    named, hints = NamedGraph(GRAPH, True), Hints(**CALL, graph=GRAPH)
    assert outcome(hints, named, GRAPH) is HintStatus.APPLIED
    assert outcome(hints, named, chain("a", "b").freeze()) is HintStatus.APPLIED
    assert outcome(hints, named, OTHER) is HintStatus.CLIPPED


def test_a_run_that_began_with_another_graph_than_the_registered_one_keeps_it():
    hints = Hints(**CALL, graph_id="review")
    assert outcome(hints, NamedGraph(GRAPH, True), GRAPH) is HintStatus.APPLIED
    assert outcome(hints, NamedGraph(GRAPH, True), OTHER) is HintStatus.CLIPPED
    assert outcome(hints, NamedGraph(None, False), OTHER) is HintStatus.UNKNOWN_GRAPH


def test_a_name_beside_a_graph_must_be_that_of_the_graph():
    hints = Hints(**CALL, graph=GRAPH, graph_id="review")
    assert outcome(hints, NamedGraph(GRAPH, True), GRAPH) is HintStatus.APPLIED
    assert outcome(hints, NamedGraph(GRAPH, False), GRAPH) is HintStatus.CLIPPED


@pytest.mark.parametrize(
    "field", [{"agent_id": "c"}, {"next_agents": {"c": 1.0}}, {"steps_to_execution": {"c": 2.0}}]
)
def test_agents_that_the_graph_of_the_run_lacks_are_told(field):
    hints = Hints(**{**CALL, **field})
    assert outcome(hints, run_graph=GRAPH) is HintStatus.CLIPPED
    assert outcome(hints, run_graph=OTHER) is HintStatus.APPLIED
    assert outcome(hints) is HintStatus.APPLIED


def test_an_order_is_not_applied_while_its_tenant_falls_back_to_lru():
    for field in ({"graph": GRAPH}, {"next_agents": {"b": 1.0}}, {"steps_to_execution": {"b": 1}}):
        hints = Hints(**CALL, **field)
        named = NamedGraph(hints.graph, True)
        assert outcome(hints, named) is HintStatus.APPLIED
        assert outcome(hints, named, follows_order=False) is HintStatus.CLIPPED
    assert outcome(Hints(**CALL), follows_order=False) is HintStatus.APPLIED


def test_a_prefetch_is_not_applied_where_nothing_is_prefetched():
    for prefetch, status in ((True, HintStatus.CLIPPED), (False, HintStatus.APPLIED)):
        hints = Hints(**CALL, prefetch=prefetch)
        assert outcome(hints) is HintStatus.APPLIED
        assert outcome(hints, prefetches=False) is status


def test_a_priority_alone_is_applied():
    assert priority_outcome(Hints(priority=3)) is HintStatus.APPLIED
    assert priority_outcome(Hints(priority=3, is_clipped=True)) is HintStatus.CLIPPED
    assert priority_outcome(Hints(priority=3, graph=GRAPH)) is HintStatus.CLIPPED
    assert priority_outcome(Hints(graph=GRAPH)) is HintStatus.IGNORED
