"""What a plan of one step counts."""

from types import SimpleNamespace

from kvflow_jax.engine.step_plan import StepPlan


def test_an_empty_plan_takes_a_step_and_has_no_drafts():
    plan = StepPlan()
    assert (plan.num_steps, plan.num_draft_tokens) == (1, 0)


def test_the_drafts_of_all_chunks_are_counted():
    plan = StepPlan(chunks=[SimpleNamespace(draft=(1, 2)), SimpleNamespace(draft=(3,))])
    assert plan.num_draft_tokens == 3
