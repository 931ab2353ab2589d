"""The face of the clients' room."""

from __future__ import annotations

import subprocess
import sys

import kvflow_jax.clients
from kvflow_jax import Workflow, clients


def test_the_import_brings_no_framework_and_no_http_client() -> None:
    heavy = ("jax", "numpy", "httpx", "httpx2", "openai", "langgraph", "agents", "autogen_core")
    program = f"""
import sys
import kvflow_jax.clients
with kvflow_jax.clients.run("r", graph={{"nodes": ["a"]}}), kvflow_jax.clients.step("a"):
    assert kvflow_jax.clients.hints()["agent_id"] == "a"
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_hints_for_other_clients() -> None:
    assert clients.hints() == {}
    team = Workflow().edge("planner", "writer")
    with clients.run("task-1", graph=team), clients.step("planner", session="s"):
        found = clients.hints()
    graph = found.pop("step_graph")
    assert found == {"workflow_id": "task-1", "agent_id": "planner", "session_id": "s"}
    assert graph == team.to_dict()
    with clients.step("planner"):
        assert clients.hints() == {"agent_id": "planner"}
    with clients.run() as run:
        assert clients.hints() == {"workflow_id": run.id}


def test_its_names() -> None:
    assert all(callable(getattr(kvflow_jax.clients, name)) for name in clients.__all__)
