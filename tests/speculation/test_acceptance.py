from kvflow_jax.speculation.acceptance import _MAX_AGENTS, AcceptanceRates, AgentRates, kind_of

KIND = kind_of(4, 1.0, is_own=True)


def test_rates_follow_what_drafts_reach():
    rates = AcceptanceRates()
    before = rates.rate(KIND)
    for _ in range(500):
        rates.record(KIND, is_hit=False)
    assert rates.rate(KIND) < 0.05 < before
    for _ in range(500):
        rates.record(KIND, is_hit=True)
    assert rates.rate(KIND) > 0.95


def test_longer_and_unanimous_matches_are_expected_to_hold_more_often():
    rates = AcceptanceRates()
    by_length = [rates.rate(kind_of(length, 1.0, is_own=False)) for length in (2, 4, 9, 30)]
    assert by_length == sorted(set(by_length))
    by_share = [rates.rate(kind_of(4, share, is_own=False)) for share in (0.3, 0.7, 1.0)]
    assert by_share == sorted(set(by_share))


def test_kinds_are_learned_separately():
    rates = AcceptanceRates()
    rates.record(KIND, is_hit=False)
    other = kind_of(4, 1.0, is_own=False)
    assert rates.rate(other) == AcceptanceRates().rate(other)


def test_agents_used_least_recently_are_forgotten():
    agents = AgentRates()
    first = agents.of(-1)
    for agent in range(_MAX_AGENTS - 1):
        agents.of(agent)
    assert agents.of(-1) is first
    agents.of(_MAX_AGENTS)
    agents.of(_MAX_AGENTS + 1)
    assert agents.of(-1) is first
