"""What calls say about themselves."""

import numpy as np

from experiments.compare.call_hints import client_identity, declared, nothing
from experiments.workloads.base import Call, Run
from kvflow_jax.workflow.hints import Hints
from kvflow_jax.workflow.workflow import Workflow

PARTS = (np.arange(4, dtype=np.int32),)
GRAPH = Workflow().edge("main", "Explore").freeze()


def hints_of(kind, agent, session, **rest):
    call = Call(agent, PARTS, 2, 1, session=session, **rest)
    return kind(Run("key", "root", GRAPH, (call,)), call)


def test_a_workload_declares_all_that_it_knows():
    hints = hints_of(declared, "main", "chat", is_last=True)
    assert (hints.agent_id, hints.workflow_id, hints.session_id) == ("main", "root", "chat")
    assert (hints.graph, hints.num_fixed, hints.session_final) == (GRAPH, 2, True)


def test_a_coding_agent_names_its_sessions_and_roles_and_no_more():
    same = {"workflow_id": "root", "tenant": "key", "num_fixed": 2}
    main = Hints(agent_id="main", session_id="root/main", **same)
    assert hints_of(client_identity, "main", "main", is_last=True) == main
    subagent = Hints(
        agent_id="Explore", session_id="root/main/a1", parent_session_id="root/main", **same
    )
    assert hints_of(client_identity, "Explore", "main/a1") == subagent


def test_a_call_without_an_agent_says_nothing_but_its_tenant():
    for kind in (declared, client_identity, nothing):
        assert hints_of(kind, "", None) == Hints(tenant="key")
    assert hints_of(nothing, "main", "main") == Hints(tenant="key")
