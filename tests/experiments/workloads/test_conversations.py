"""Conversations that start each other."""

from tests.experiments.workloads.trace_lines import session, turn


def test_a_long_chain_of_sessions_does_not_recurse(read):
    num_sessions = 3000
    (run,) = read(
        *(
            session(f"s{i}", turn("x", forks=[f"s{i + 1}"] if i < num_sessions - 1 else []))
            for i in range(num_sessions)
        )
    )
    assert len(run.calls) == num_sessions
    assert run.calls[-1].after == (num_sessions - 2,)
