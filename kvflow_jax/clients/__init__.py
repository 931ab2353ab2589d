"""Hints for the server from applications of agents, by one argument of their HTTP client.

    llm = ChatOpenAI(base_url=..., http_client=kvflow_jax.clients.http_client(graph=app))

Frameworks and HTTP clients are the user's, and are imported when they are used.
"""

from __future__ import annotations

import json

from kvflow_jax.clients.call import Call
from kvflow_jax.clients.callers import Callers, graph_of
from kvflow_jax.clients.hinter import hints_of
from kvflow_jax.clients.hinting_client import async_http_client, http_client
from kvflow_jax.clients.runs import Run
from kvflow_jax.clients.scopes import Scope, run_scope, step_scope

__all__ = ["async_http_client", "hints", "http_client", "run", "step"]


def run(run_id: object = None, graph: object = None) -> Scope[Run]:
    """Begin a run: calls within ``with run():`` belong to it, and it ends with the block.

    Args:
        run_id: its name, by default a random one; ``as`` gives the run, with its ``id``.
        graph: of any kind that ``http_client`` takes; by default the client's.
    """
    return run_scope(run_id, None if graph is None else graph_of(graph))


def step(agent: object, session: object = None) -> Scope[Call]:
    """Make the calls within ``with step("planner"):`` those of an agent, in threads and tasks too.

    Steps within steps are those of the innermost.

    Args:
        session: the conversation that they continue. By default the client sees in the prompts
            whether an agent continues its earlier ones.
    """
    return step_scope(agent, session)


def hints() -> dict[str, object]:
    """Return ``agent_hints`` of the current call, for other clients; {} where none is known.

    client.chat.completions.create(..., extra_body={"agent_hints": kvflow_jax.clients.hints()})
    """
    call = _CALLERS.current()
    if call is None:
        return {}
    if call.on_sent is not None:
        call.on_sent()
    found = hints_of(call)
    graph = None
    if call.run is not None and call.agent is not None:
        graph = call.run.graph_json(call.agent)
    return found if graph is None else {**found, "step_graph": json.loads(graph)}


_CALLERS = Callers()
