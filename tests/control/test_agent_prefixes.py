"""Fixed prefixes, declared or learned from earlier prompts."""

import pytest

from kvflow_jax.bounds.tenant_lru import ENTRY_BYTES
from kvflow_jax.control.agent_prefixes import (
    AGENT_TTL_S,
    MAX_PREFIXES,
    MAX_PROMPTS,
    MAX_SHARED,
    AgentPrefixes,
)
from kvflow_jax.control.readers import AgentReader, PrefixReader, RunKey
from kvflow_jax.workflow.hints import Hints
from tests.support.agent_cycle import AGENTS, KVFLOW, call, cycle
from tests.support.bare_request import bare_request
from tests.support.memory import traced_bytes
from tests.support.token_runner import make_engine

PAGE_SIZE = 4
AGENT = AgentReader("tenant", "coder")
OTHER = AgentReader("other", "coder")
ROLE = [1] * 12
RUNS = [RunKey("tenant", f"run{i}") for i in range(MAX_PROMPTS + 2)]


@pytest.fixture
def prefixes():
    return AgentPrefixes(lambda reader: None)


_ids = iter(range(10**6))


def note(prefixes, prompt, *, agent=AGENT, run=None, num_fixed=None, now=0.0):
    """Note a call; return its fixed prefix."""
    hints = Hints(agent_id=agent.agent, num_fixed=num_fixed)
    request = bare_request(prompt, hints=hints)
    request.id = next(_ids)
    return prefixes.note_call(agent, request, run, PAGE_SIZE, now)


def length(*args, **fields):
    return note(*args, **fields).num_tokens


def test_the_first_call_has_no_known_prefix(prefixes):
    assert note(prefixes, ROLE) == (0, None)
    assert prefixes.of(AGENT) == prefixes.shared(AGENT) == []


def test_a_prefix_is_learned_in_whole_pages(prefixes):
    note(prefixes, [1] * 10 + [2])
    assert length(prefixes, [1] * 10 + [3] * 5) == 8
    assert note(prefixes, [9] * 12) == (0, None)


def test_agents_learn_from_their_own_prompts_only(prefixes):
    note(prefixes, ROLE)
    assert length(prefixes, ROLE, agent=OTHER) == 0
    assert list(prefixes) == [AGENT, OTHER]


def test_a_declared_prefix_goes_before_a_learned_one(prefixes):
    note(prefixes, ROLE)
    assert length(prefixes, ROLE, num_fixed=5) == 5
    assert length(prefixes, ROLE) == 12


def test_an_agent_that_alternates_between_two_templates_keeps_both(prefixes):
    other_role = [2] * 12
    seen = [note(prefixes, [*role, i]) for i in range(3) for role in (ROLE, other_role)]
    assert [prefix.num_tokens for prefix in seen] == [0, 0, 12, 12, 12, 12]
    first, second = (prefix.reader for prefix in seen[-2:])
    assert first != second
    assert prefixes.of(AGENT) == prefixes.shared(AGENT) == [first, second]


def test_declared_prefixes_of_two_templates_are_both_kept(prefixes):
    first = note(prefixes, ROLE, num_fixed=8, run=RUNS[0]).reader
    assert prefixes.shared(AGENT) == [first]  # the only one: of any run
    second = note(prefixes, [2] * 12, num_fixed=8, run=RUNS[1]).reader
    assert prefixes.of(AGENT) == [first, second]
    assert prefixes.shared(AGENT) == []
    note(prefixes, ROLE, num_fixed=8, run=RUNS[2])
    assert prefixes.shared(AGENT) == [first]


def test_a_run_has_its_own_prefix_and_a_new_one_what_runs_share(prefixes):
    tickets = {run: [7 + i] * 8 for i, run in enumerate(RUNS[:3])}
    for run, ticket in tickets.items():
        note(prefixes, ROLE + ticket + [1] * 5, run=run)
    own = {run: note(prefixes, ROLE + t + [2] * 5, run=run) for run, t in tickets.items()}
    assert [prefix.num_tokens for prefix in own.values()] == [20, 20, 20]
    assert len({prefix.reader for prefix in own.values()}) == 3
    (shared,) = prefixes.shared(AGENT)
    assert shared == note(prefixes, [*ROLE, 99], run=RUNS[3]).reader


def test_an_agent_whose_prompts_grow_in_a_run_keeps_the_last_one(prefixes):
    prompt = list(ROLE)
    for turn in range(2 * MAX_PROMPTS):
        note(prefixes, [*ROLE, 77, turn], run=RUNS[1]) if turn == 5 else None
        before, prompt = len(prompt), [*prompt, *[10 + turn] * 4]
        assert length(prefixes, prompt, run=RUNS[0]) == (before if turn else 0)
    # The prompts of one run did not displace that of the other.
    assert length(prefixes, [*ROLE, 77, 5, 5, 5], run=RUNS[1]) == 12


def test_a_prefix_is_what_keeps_being_hit_whatever_the_last_prompt_was(prefixes):
    note(prefixes, [*ROLE, 3])
    note(prefixes, [9, 9])
    assert length(prefixes, [*ROLE, 4]) == 12


@pytest.mark.parametrize(("num_others", "expected"), [(MAX_PROMPTS - 1, 12), (MAX_PROMPTS, 0)])
def test_the_last_prompts_of_an_agent_are_bounded(prefixes, num_others, expected):
    note(prefixes, ROLE, run=RUNS[0])
    for i in range(num_others):
        note(prefixes, [100 + i] * 12, run=RUNS[1 + i])
    assert length(prefixes, ROLE) == expected


def test_the_prefix_used_least_recently_is_released():
    released = []
    prefixes = AgentPrefixes(released.append)
    readers = [note(prefixes, [i] * 12, num_fixed=12).reader for i in (*range(MAX_PREFIXES), 0, 99)]
    assert released == [readers[1]]
    assert len(prefixes.of(AGENT)) == MAX_PREFIXES


def test_an_agent_without_calls_is_released_with_its_prefixes():
    released = []
    prefixes = AgentPrefixes(released.append)
    old, new = AgentReader("t", "old"), AgentReader("t", "new")
    reader = note(prefixes, ROLE, agent=old, num_fixed=8).reader
    assert isinstance(reader, PrefixReader)
    assert reader.of_agent == old
    note(prefixes, ROLE, agent=new, now=10.0)
    prefixes.expire(AGENT_TTL_S + 5.0)
    assert released == [reader, old]
    assert list(prefixes) == [new]


def test_the_bytes_of_a_tenants_agents_are_bounded():
    released = []
    prefixes = AgentPrefixes(released.append, max_bytes=2 * (ENTRY_BYTES + 1300))
    a, b, c, d = (AgentReader("t", name) for name in "abcd")
    note(prefixes, [1] * 8, agent=OTHER)
    for agent, run in ((a, RUNS[0]), (b, None), (a, RUNS[0]), (c, None)):
        note(prefixes, [1] * 8 if agent != a else [2] * 3, agent=agent, run=run)
    assert released == [b]  # called least recently
    note(prefixes, [1] * 2000, agent=d)
    assert released[1:] == [a, c]  # for its hashes
    assert list(prefixes) == [OTHER, d]


def test_a_fixed_prefix_that_no_caller_declares_is_learned_and_kept():
    engine = make_engine(num_pages=32, cache=KVFLOW)
    graph = cycle()
    for turn in range(4):
        for agent in AGENTS:
            client = call(engine, agent, turn, graph, num_fixed=None)
    assert client.stats.num_cached_tokens >= 32


def test_a_run_may_read_the_shared_prefixes_that_were_used_last(prefixes):
    readers = [
        note(prefixes, [i] * 12, num_fixed=12, run=run).reader
        for i in range(MAX_SHARED + 2)
        for run in RUNS[:2]
    ]
    assert prefixes.shared(AGENT) == readers[::2][-MAX_SHARED:]
    assert len(prefixes.of(AGENT)) == MAX_SHARED + 2


def test_an_agent_is_known_until_it_is_forgotten(prefixes):
    assert not prefixes.knows(AGENT)
    note(prefixes, ROLE)
    assert prefixes.knows(AGENT)
    prefixes.expire(AGENT_TTL_S)
    assert not prefixes.knows(AGENT)


@pytest.mark.parametrize("num_fixed", [None, 8], ids=["learned", "declared"])
def test_names_of_agents_and_runs_count_as_memory(num_fixed):
    def copy(name, i):
        return "".join([name] * 250) + str(i)

    def make():
        prefixes = AgentPrefixes(lambda reader: None)
        for i in range(20):
            for j in range(MAX_PREFIXES):
                agent = AgentReader("tenant", copy("\N{ROBOT FACE}", i))
                run = RunKey("tenant", copy("\N{RUNNER}", j))
                note(prefixes, [j] * 8 + [3], agent=agent, run=run, num_fixed=num_fixed)
        return prefixes

    num_bytes, prefixes = traced_bytes(make)
    assert num_bytes <= prefixes.usage.num_bytes <= 3 * num_bytes
