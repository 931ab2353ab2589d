"""The state of a run, as the steps-to-execution and probabilities of its nodes show it."""

import pytest

from kvflow_jax.errors import IntegrityError
from kvflow_jax.workflow.step_graph import NEVER, RunState
from kvflow_jax.workflow.workflow import Workflow
from tests.support.memory import traced_bytes
from tests.support.step_graphs import by_node, chain, chances, play, run_of


def test_a_chain_counts_down_to_each_agent():
    run = run_of(chain("plan", "code", "review"))
    assert by_node(run) == {"plan": 0, "code": 1, "review": 2}
    run.start("plan")
    assert by_node(run) == {"plan": 0, "code": 1, "review": 2}
    run.finish("plan")
    assert by_node(run) == {"plan": NEVER, "code": 0, "review": 1}
    play(run, "code")
    assert not run.is_over
    play(run, "review")
    assert by_node(run) == {"plan": NEVER, "code": NEVER, "review": NEVER}
    assert run.is_over


def test_in_a_cycle_the_agent_that_just_ran_is_the_furthest():
    names = [f"agent-{i}" for i in range(10)]
    run = run_of(chain(*names, names[0]).entry(names[0]).join(names[0], "any"))
    assert list(run.steps()) == list(range(10))
    for _ in range(2):
        for i, name in enumerate(names):
            play(run, name)
            assert run.steps()[i] == 9
            assert run.steps()[(i + 1) % 10] == 0
    assert not run.is_over


@pytest.mark.parametrize(("mode", "after_one", "before"), [("all", 3, 4), ("any", 0, 2)])
def test_a_diamond_waits_for_its_slowest_or_its_fastest_branch(mode, after_one, before):
    workflow = chain("split", "short", "merge").edge("split", "long-1").edge("long-1", "long-2")
    run = run_of(workflow.edge("long-2", "long-3").edge("long-3", "merge").join("merge", mode))
    assert by_node(run)["merge"] == before
    play(run, "split", "short")
    assert by_node(run)["merge"] == after_one
    play(run, "long-1", "long-2")
    run.start("long-3")
    assert by_node(run)["merge"] == min(after_one, 1)


def test_an_any_join_may_run_once_for_each_satisfied_input():
    run = run_of(chain("split", "left", "merge").edge("split", "right").edge("right", "merge"))
    any_run = run_of(
        chain("split", "left", "merge")
        .edge("split", "right")
        .edge("right", "merge")
        .join("merge", "any")
    )
    play(run, "split", "left")
    play(any_run, "split", "left", "merge")
    assert by_node(run)["merge"] == by_node(any_run)["merge"] == 1
    assert play(run, "right", "merge").is_over
    assert play(any_run, "right", "merge").is_over


def test_nested_fans_join_from_the_inside_out():
    workflow = Workflow()
    for inner in ("left", "right"):
        workflow.edge("root", inner)
        for leaf in ("1", "2"):
            workflow.edge(inner, f"{inner}-{leaf}").edge(f"{inner}-{leaf}", f"{inner}-merge")
        workflow.edge(f"{inner}-merge", "summary")
    run = run_of(workflow)
    assert by_node(run)["summary"] == 4
    play(run, "root", "left", "left-1", "left-2", "left-merge")
    assert by_node(run) | {"right": 0, "right-merge": 2, "summary": 3} == by_node(run)
    play(run, "right", "right-2")
    assert by_node(run)["right-merge"] == 1
    play(run, "right-1", "right-merge", "summary")
    assert run.is_over


def test_both_branches_of_a_choice_are_due_until_one_is_taken():
    workflow = chain("review", "publish", "archive")
    workflow.edge("review", "fix", conditional=True).edge("review", "publish", conditional=True)
    run = play(run_of(workflow), "review")
    assert by_node(run) == {"review": NEVER, "publish": 0, "fix": 0, "archive": 1}
    run.start("fix")
    assert by_node(run) == {"review": NEVER, "publish": NEVER, "fix": 0, "archive": NEVER}
    run.finish("fix")
    assert run.is_over


def test_the_branch_not_taken_comes_back_with_the_loop():
    workflow = chain("write", "review").edge("review", "write", conditional=True)
    workflow.edge("review", "publish", conditional=True).join("write", "any").entry("write")
    run = play(run_of(workflow), "write", "review")
    assert by_node(run) == {"write": 0, "review": 1, "publish": 0}
    run.start("write")
    assert by_node(run) == {"write": 0, "review": 1, "publish": 2}
    run.finish("write")
    play(run, "review")
    assert by_node(run)["publish"] == 0
    assert play(run, "publish").is_over


def test_a_choice_leaves_unconditional_edges_alone():
    workflow = chain("route", "log").edge("route", "a", True).edge("route", "b", True)
    run = play(run_of(workflow), "route", "a")
    assert by_node(run) == {"route": NEVER, "log": 0, "a": NEVER, "b": NEVER}
    run = play(run_of(workflow), "route", "log")
    assert by_node(run) == {"route": NEVER, "log": NEVER, "a": 0, "b": 0}


def test_a_choice_revokes_only_the_branches_of_its_own_source():
    workflow = Workflow().edge("x", "a", True).edge("x", "b", True).edge("y", "b", True)
    run = play(run_of(workflow.edge("y", "c", True).join("b", "any")), "x", "y")
    run.start("a")
    assert by_node(run) == {"x": NEVER, "a": 0, "b": 0, "y": NEVER, "c": 0}
    run.start("b")
    assert by_node(run)["c"] == NEVER


def test_an_agent_that_repeats_is_as_near_as_its_nearest_call():
    workflow = chain("review-1", "code", "review-2", "publish")
    workflow.node("review-1", agent="reviewer").node("review-2", agent="reviewer")
    run = run_of(workflow)
    assert run.agent_steps() == {"reviewer": 0, "code": 1, "publish": 3}
    play(run, "reviewer")
    assert run.agent_steps() == {"reviewer": 1, "code": 0, "publish": 2}
    play(run, "code", "reviewer")
    assert run.agent_steps() == {"reviewer": NEVER, "code": NEVER, "publish": 0}


def test_a_surplus_call_of_a_repeating_agent_runs_its_node_with_the_fewest_steps():
    workflow = chain("far", "b", "late").edge("b", "soon").edge("late", "far").entry("b")
    workflow.node("far", agent="x").node("soon", agent="x")
    run = run_of(workflow)
    assert by_node(run) == {"far": 2, "b": 0, "late": 1, "soon": 1}
    play(run, "x")
    assert by_node(run) == {"far": 2, "b": 0, "late": 1, "soon": 1}  # soon has no outputs
    run.start("x")
    assert run.graph.names[run.running[0]] == "soon"


def test_a_loop_may_pass_a_join_of_all():
    workflow = chain("plan", "code", "merge").edge("plan", "test").edge("test", "merge")
    workflow.edge("merge", "plan", conditional=True).edge("merge", "done", conditional=True)
    run = run_of(workflow.entry("plan"))
    for _ in range(3):
        play(run, "plan", "test")
        assert by_node(run)["merge"] == 1
        play(run, "code", "merge")
        assert by_node(run) == {"plan": 0, "code": 1, "merge": 2, "test": 1, "done": 0}
    assert play(run, "done").is_over


def test_a_join_of_all_that_waits_for_itself_never_runs():
    workflow = chain("start", "body", "body").join("body", "all")
    assert by_node(run_of(workflow)) == {"start": 0, "body": NEVER}
    assert by_node(run_of(workflow.join("body", "any"))) == {"start": 0, "body": 1}


def test_an_abandoned_call_may_be_tried_again():
    run = play(run_of(chain("plan", "code", "review")), "plan")
    run.start("code")
    assert run.abandon("code")
    assert by_node(run) == {"plan": NEVER, "code": 0, "review": 1}
    assert run.running == ()
    assert play(run, "code", "review").is_over


def test_concurrent_calls_of_one_node_end_one_by_one():
    run = run_of(chain("map", "reduce"))
    run.start("map")
    run.start("map")
    assert run.running == (0, 0)
    run.finish("map")
    assert by_node(run) == {"map": 0, "reduce": 0}
    run.start("reduce")
    run.finish("map")
    assert by_node(run) == {"map": NEVER, "reduce": 0}
    assert not run.finish("map")


def test_calls_of_an_agent_end_in_the_order_they_began():
    workflow = Workflow().node("a-1", agent="a").node("a-2", agent="a")
    run = run_of(workflow.edge("a-1", "b").edge("a-2", "c"))
    run.start("a")
    run.start("a")
    run.finish("a")
    assert by_node(run) == {"a-1": NEVER, "a-2": 0, "b": 0, "c": 1}


def test_a_call_that_is_not_due_starts_all_the_same():
    run = run_of(chain("plan", "code", "review"))
    play(run, "code")
    assert by_node(run) == {"plan": 0, "code": 1, "review": 0}


def test_an_agent_that_the_graph_lacks_changes_nothing():
    run = run_of(chain("plan", "code"))
    before = run.key
    assert not run.start("stranger")
    assert not run.finish("stranger")
    assert not run.finish("plan")
    assert not run.abandon("plan")
    assert run.advance(completed=["stranger"], running=["other"]) == ["stranger", "other"]
    assert run.key == before


def test_a_caller_may_report_progress():
    run = run_of(chain("plan", "code", "review"))
    assert run.advance(completed=["plan"], running=["code"]) == []
    assert by_node(run) == {"plan": NEVER, "code": 0, "review": 1}
    run.advance(running=["code"])  # reported twice, running once
    assert run.running == (1,)
    run.advance(running=["code", "code"])
    assert run.running == (1, 1)
    run.advance(completed=["code", "code", "review"])
    assert run.is_over


def test_runs_of_one_graph_do_not_disturb_each_other():
    graph = chain("plan", "code").freeze()
    first, second = RunState(graph), RunState(graph)
    assert first.key == second.key
    play(first, "plan")
    assert by_node(second) == {"plan": 0, "code": 1}
    assert first.key != second.key
    play(second, "plan")
    assert first.key == second.key
    assert len({(graph, first.key), (graph, second.key)}) == 1
    first.start("code")
    second.start("code")
    second.finish("code")
    assert first.key != second.key


def test_runs_begin_at_declared_entries_or_at_nodes_without_inputs():
    assert chain("a", "b").edge("c", "b").entries == ("a", "c")
    assert chain("a", "b").agent("alone").entries == ("a", "alone")
    assert chain("a", "b").agent("c").entry("b").entries == ("b",)
    assert Workflow().agent("c").edge("a", "b").edge("b", "c").edge("c", "a").entries == ("a",)
    assert Workflow().agent("only").entries == ("only",)
    assert Workflow().entries == ()
    assert run_of(Workflow()).is_over


def test_choices_without_a_probability_share_what_the_others_leave():
    workflow = Workflow().edge("route", "a", probability=0.5).edge("route", "b", True)
    workflow.edge("route", "c", True).edge("route", "log").edge("a", "after-a").edge("b", "end")
    run = run_of(workflow)
    assert chances(run) == {"route": 1.0, "a": 0.5, "b": 0.25, "c": 0.25, "log": 1.0}
    play(run, "route")
    assert chances(run) == {
        "a": 0.5, "b": 0.25, "c": 0.25, "log": 1.0, "after-a": 0.5, "end": 0.25,
    }  # fmt: skip
    run.start("a")
    assert chances(run) == {"a": 1.0, "log": 1.0, "after-a": 1.0}


@pytest.mark.parametrize(("mode", "chance"), [("all", 0.2), ("any", 0.7)])
def test_a_join_of_choices_is_as_likely_as_both_or_either(mode, chance):
    workflow = Workflow().edge("x", "merge", True, 0.5).edge("y", "merge", True, 0.4)
    run = run_of(workflow.join("merge", mode))
    assert chances(run)["merge"] == pytest.approx(chance)
    assert chances(play(run, "x", "y"))["merge"] == pytest.approx(chance)


def test_probabilities_above_one_in_total_leave_nothing_for_the_other_choices():
    workflow = Workflow().edge("x", "a", True, 0.9).edge("x", "b", True, 0.9).edge("x", "c", True)
    assert chances(run_of(workflow)) == {"x": 1.0, "a": 0.9, "b": 0.9, "c": 0.0}


def test_a_choice_that_is_satisfied_in_part_is_found():
    run = play(run_of(Workflow().edge("x", "a", True).edge("x", "b", True)), "x")
    run.check_integrity()
    run._satisfied -= {0}
    with pytest.raises(IntegrityError, match="only some choices"):
        run.check_integrity()


@pytest.mark.parametrize(
    ("num_nodes", "num_edges", "is_choice", "len_name"),
    [(20, 40, False, 8), (500, 500, True, 8), (300, 6000, True, 8), (800, 0, False, 200)],
)
def test_the_bytes_of_a_graph_are_estimated(num_nodes, num_edges, is_choice, len_name):
    def make():
        names = [f"{i:0{len_name}d}" for i in range(num_nodes)]
        workflow = Workflow()
        for name in names:
            workflow.agent(name)
        for i in range(num_edges):
            target = names[(i + 1 + i // num_nodes) % num_nodes]
            workflow.edge(names[i % num_nodes], target, is_choice)
        return workflow.freeze()

    num_bytes, graph = traced_bytes(make)
    assert 0.9 * num_bytes <= graph.num_bytes <= 1.8 * num_bytes


def test_the_bytes_of_a_run_grow_with_what_is_satisfied():
    workflow = Workflow()
    for i in range(1000):
        workflow.edge("a", f"b{i}")
    run = run_of(workflow)
    before = run.num_bytes
    num_bytes, _ = traced_bytes(lambda: play(run_of(workflow), "a"))
    play(run, "a")
    assert run.num_bytes > before
    assert 0.9 * num_bytes <= run.num_bytes <= 1.2 * num_bytes
