"""Values that hold while their contexts do."""

from kvflow_jax.reuse.context import Context
from kvflow_jax.reuse.made_from import MadeFrom


def test_a_change_of_any_context_ends_it():
    contexts = [Context(has_delays=False) for _ in range(4)]
    made_from = MadeFrom(contexts)
    assert made_from.holds
    contexts[2].version += 1
    assert not made_from.holds


def test_a_tolerance_is_a_part_of_the_number_of_contexts():
    contexts = [Context(has_delays=False) for _ in range(8)]
    made_from = MadeFrom(contexts, tolerance=0.25)
    contexts[0].version += 1
    contexts[1].version += 1
    assert made_from.holds
    contexts[7].version += 1
    assert not made_from.holds
    assert MadeFrom([]).holds


def test_a_change_of_another_kind_ends_it_however_many_contexts_there_are():
    contexts = [Context(has_delays=False) for _ in range(200)]
    made_from = MadeFrom(contexts, tolerance=0.25)
    contexts[0].learn("new", 1.0)
    assert not made_from.holds
