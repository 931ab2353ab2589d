"""What the client of a call says about it: everything, its sessions, or nothing."""

from __future__ import annotations

from collections.abc import Callable

from experiments.workloads.base import Call, Run
from kvflow_jax.workflow.hints import Hints

HintsOf = Callable[[Run, Call], Hints]


def declared(run: Run, call: Call) -> Hints:
    """Return all that a workload knows: agent, run, graph, fixed prefix, session and its end."""
    if not call.agent:
        return nothing(run, call)
    return Hints(
        workflow_id=run.workflow_id,
        agent_id=call.agent,
        graph=run.graph,
        num_fixed=call.num_fixed,
        session_id=call.session,
        session_final=call.is_last,
        tenant=run.tenant,
    )


def client_identity(run: Run, call: Call) -> Hints:
    """Return what a server reads from the headers of a coding agent, such as Claude Code.

    That is the root session as the run, the session, its parent, and the role as the agent; and how
    many tokens its system messages and tools have. A subagent's session is named as in *weka*
    traces: its parent's name, a slash, its own.
    """
    if not call.agent or call.session is None:
        return nothing(run, call)
    parent, _, _ = call.session.rpartition("/")
    return Hints(
        workflow_id=run.workflow_id,
        agent_id=call.agent,
        num_fixed=call.num_fixed,
        session_id=f"{run.workflow_id}/{call.session}",
        parent_session_id=f"{run.workflow_id}/{parent}" if parent else None,
        tenant=run.tenant,
    )


def nothing(run: Run, call: Call) -> Hints:
    """Return hints that name only the tenant, which is that of the API key."""
    return Hints(tenant=run.tenant)
