"""Agents as nodes of the prefix tree."""

import numpy as np
import pytest

from kvflow_jax.control.recognition.prompt_agents import MAX_NODES, PromptAgents
from kvflow_jax.requests.block_hashes import block_hashes
from tests.support.bare_request import bare_request
from tests.support.memory import traced_bytes

PAGE = 4
RNG = np.random.default_rng(1)
TOOLS = RNG.integers(0, 1000, 40)


def tokens(count):
    return RNG.integers(0, 50_000, count)


@pytest.fixture
def agents():
    return PromptAgents(PAGE)


def find(agents, *parts, num_system=None, run=None):
    request = bare_request(np.concatenate(parts))
    hashes = block_hashes(request, request.num_prompt, PAGE)
    prompt = request.tokens[: request.num_prompt]
    return agents.find(prompt, hashes, num_system, object() if run is None else run)


def test_an_agent_is_its_system_prompt_with_its_tools(agents):
    planner, coder = np.concatenate([TOOLS, tokens(17)]), np.concatenate([TOOLS, tokens(17)])
    names = [
        find(agents, role, tokens(30), num_system=len(role))
        for role in (planner, coder, planner, coder, planner)
    ]
    assert names == [names[0], names[1]] * 2 + [names[0]]
    assert names[0] != names[1]


def test_system_prompts_shorter_than_a_block_name_agents_too(agents):
    names = [find(agents, [role], tokens(30), num_system=1) for role in (1, 2, 1)]
    assert names[0] == names[2] != names[1]


def test_a_prompt_without_a_system_prompt_has_no_agent_at_first(agents):
    assert find(agents, tokens(30), num_system=0) is None
    assert find(agents, tokens(30)) is None


def test_names_are_the_same_in_each_process(agents):
    role = np.arange(20, dtype=np.int32)
    assert find(agents, role, tokens(3), num_system=20) == "prefix-1c6b01072827"


def test_an_agent_whose_system_prompt_ends_differently_in_each_run_is_what_they_share(agents):
    shared = tokens(80)
    runs = [object() for _ in range(20)]
    names = []
    for run in runs:
        system = np.concatenate([shared, tokens(12)])  # a date, a folder
        names += [find(agents, system, tokens(9), num_system=92, run=run) for _ in range(3)]
    assert len(set(names[-30:])) == 1
    # Another role with the same tools stays another one.
    other = find(agents, shared[:40], tokens(30), tokens(9), num_system=70)
    assert other != names[-1]


def test_roles_that_share_their_tools_are_agents_of_their_own(agents):
    roles = [np.concatenate([TOOLS, tokens(13)]) for _ in range(8)]
    for _ in range(4):
        names = [find(agents, role, tokens(9), num_system=len(role)) for role in roles]
    assert len(set(names)) == len(roles)


def test_a_completion_is_of_the_agent_whose_prefix_it_shares(agents):
    planner, coder = tokens(40), tokens(40)
    names = [find(agents, role, tokens(30)) for role in (planner, coder) * 5]
    assert names[:2] == [None, None]
    assert names[2] != names[3]
    assert names[2:] == names[2:4] * 4


def test_prompts_of_one_run_that_grow_are_of_one_agent(agents):
    role = tokens(40)
    first = [find(agents, role, tokens(30)) for _ in range(2)]
    names = set()
    for _ in range(5):
        run, text = object(), []
        for _ in range(30):
            text.extend(tokens(PAGE))
            names.add(find(agents, role, text, run=run))
    assert names == {first[1]}


def test_a_run_alone_has_agents_too(agents):
    run, planner, coder = object(), tokens(40), tokens(40)
    names = [find(agents, role, tokens(30), run=run) for role in (planner, coder) * 5]
    assert names[2] != names[3]
    assert names[2:] == names[2:4] * 4


def test_a_system_prompt_that_always_changes_keeps_memory_bounded(agents):
    def call(count):
        for _ in range(count):
            find(agents, tokens(40), num_system=40)

    call(3 * MAX_NODES)
    size = agents.num_bytes
    call(MAX_NODES)
    assert agents.num_bytes < 1.3 * size < 16 << 20


def test_its_memory_is_estimated(agents):
    def call():
        for _ in range(MAX_NODES):
            find(agents, tokens(40), num_system=40)

    size, _ = traced_bytes(call)
    assert 0.5 < agents.num_bytes / size < 2
