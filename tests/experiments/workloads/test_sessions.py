"""Coding sessions."""

from itertools import pairwise

from experiments.workloads.sessions import coding


def sessions(**changes):
    options = {"num_runs": 6, "rate": 1.0, "context": 4000, "vocab_size": 50, "scale": 0.02}
    return coding(**{**options, "max_turns": 12, **changes})


def test_the_history_grows_from_turn_to_turn_and_stays_within_the_context():
    workload = sessions()
    for run in workload.runs:
        turns = [call for call in run.calls if call.agent == "coder"]
        assert all(later.parts[: len(one.parts)] == one.parts for one, later in pairwise(turns))
        assert turns[-1].is_last
        assert not any(turn.is_last for turn in turns[:-1])
    assert workload.longest <= 4000


def test_a_session_ends_before_it_exceeds_the_context():
    short, long = sessions(context=500), sessions()
    assert short.longest <= 500
    assert short.num_calls < long.num_calls


def test_a_subagent_starts_without_the_history():
    calls = [call for run in sessions().runs for call in run.calls if call.agent == "explorer"]
    firsts = [call for call in calls if len(call.parts) == 2]
    assert firsts
    assert all(call.session.startswith("explorer") for call in calls)
    assert sum(call.is_last for call in calls) == len(firsts)


def test_pauses_are_between_turns_only():
    for run in sessions().runs:
        assert run.calls[0].pause_s == 0.0
        assert all(0.0 <= call.pause_s <= 600.0 for call in run.calls)
