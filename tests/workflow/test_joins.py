"""Default modes of joins: nodes with inputs that exclude each other wait for any of them."""

from kvflow_jax.workflow import joins
from kvflow_jax.workflow.joins import exclusive_joins
from kvflow_jax.workflow.workflow import Workflow
from tests.support.step_graphs import play, run_of


def exclusive(workflow):
    return exclusive_joins(workflow.edges, workflow.entries)


def test_a_fan_in_waits_for_all_inputs():
    workflow = Workflow().edge("plan", "a").edge("plan", "b").edge("a", "merge")
    assert exclusive(workflow.edge("b", "merge")) == set()


def test_branches_of_a_choice_exclude_each_other_where_they_meet():
    workflow = Workflow().edge("plan", "a", True).edge("plan", "b", True)
    workflow.edge("a", "a2").edge("a2", "merge").edge("b", "merge")
    assert exclusive(workflow) == {"merge"}


def test_a_conditional_input_makes_a_join_exclusive():
    workflow = Workflow().edge("plan", "merge", True).edge("plan", "b").edge("b", "merge")
    assert exclusive(workflow) == {"merge"}


def test_a_loop_excludes_the_first_input():
    workflow = Workflow().edge("plan", "code").edge("code", "review").edge("review", "code")
    assert exclusive(workflow) == {"code"}


def test_a_loop_around_a_fan_leaves_its_joins_alone():
    workflow = Workflow().edge("plan", "a").edge("plan", "b")
    workflow.edge("a", "merge").edge("b", "merge").edge("merge", "plan")
    assert exclusive(workflow) == set()


def test_a_costly_graph_is_not_analyzed(monkeypatch):
    workflow = Workflow().edge("plan", "code").edge("code", "review").edge("review", "code")
    monkeypatch.setattr(joins, "MAX_FOLLOWED", 2)  # the entry, and the edge behind it
    assert exclusive(workflow) == {"code"}
    monkeypatch.setattr(joins, "MAX_FOLLOWED", 1)
    assert exclusive(workflow) == set()


def test_what_is_followed_is_bounded_in_nodes_edges_choices_and_joins(monkeypatch):
    """A core in which all is connected, many choices before it and many joins behind it."""
    followed = []

    def counted(*args):
        found = _labels(*args)
        followed.append(found[1])
        return found

    _labels = joins._labels
    monkeypatch.setattr(joins, "_labels", counted)
    workflow = Workflow()
    for i in range(60):
        workflow.edge("c", f"d{i}", True).edge(f"d{i}", "k0")
        for j in range(60):
            workflow.edge(f"k{i}", f"k{j}")
    for i in range(400):
        workflow.edge("k0", f"s{i}").edge("k1", f"s{i}")
    assert exclusive(workflow) == set()
    assert sum(followed) <= joins.MAX_FOLLOWED + len(workflow.edges)


def test_undeclared_joins_wait_for_all_inputs_that_can_be_satisfied():
    """A fan-in, a choice whose branches meet, a loop back, and a loop around a fan."""
    fan = Workflow().edge("plan", "a").edge("plan", "b").edge("a", "merge").edge("b", "merge")
    fan.edge("merge", "plan")
    assert play(run_of(fan), "plan", "a").agent_steps()["merge"] == 1
    choice = Workflow().edge("plan", "a", True).edge("plan", "b", True)
    choice.edge("a", "merge").edge("b", "merge").edge("merge", "plan")
    run = play(run_of(choice), "plan", "a")
    assert run.agent_steps()["merge"] == 0
    loop = Workflow().edge("plan", "code").edge("code", "review").edge("review", "code")
    run = play(run_of(loop), "plan", "code", "review")
    assert run.agent_steps()["code"] == 0
    around = Workflow().edge("plan", "a").edge("plan", "b").edge("a", "plan").edge("b", "plan")
    run = play(run_of(around), "plan", "a")
    assert run.agent_steps()["plan"] == 1
