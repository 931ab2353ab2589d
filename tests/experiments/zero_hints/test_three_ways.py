"""The command, with servers and apps that are not run."""

import json
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import pytest

from experiments.child import ChildError
from experiments.zero_hints import langgraph_team, three_ways

VERSIONS = {"versions": {"langgraph": "1.0", "langchain-openai": "1.1"}}
CACHED = {"plain": 0, "zero hints": 60, "one argument": 75}  # tokens of each call but the first


@pytest.fixture
def world(monkeypatch):
    """Replaces servers, their routes and the app; keeps flags of servers and commands of apps."""
    seen = SimpleNamespace(servers=[], apps=[], applied=4, failure=None)

    @asynccontextmanager
    async def server_process(flags):
        seen.servers.append(flags)
        yield SimpleNamespace(url="http://server")

    def run_child(command, limit_s, env):
        options = langgraph_team.parser().parse_args(command[3:])
        if options.versions:
            return VERSIONS
        if seen.failure:
            raise ChildError(seen.failure, {})
        seen.apps.append((command[0], options, env["PYTHONPATH"]))
        cached = CACHED[three_ways.WAYS[len(seen.apps) - 1].name]
        calls = [
            {"run": run, "agent": agent, "prompt_tokens": 100, "cached_tokens": cached}
            for run in range(options.runs)
            for agent in ("planner", "writer")
        ]
        calls[0]["cached_tokens"] = 0
        return {"seconds": 20.0 / len(seen.apps), "calls": calls}

    def answer(request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "served"}]})
        samples = f'kvflow:hints_total{{outcome="applied"}} {seen.applied * len(seen.apps) // 3}\n'
        samples += 'kvflow:hints_total{outcome="ignored"} 2\n'
        return httpx.Response(200, text="# TYPE kvflow:hints counter\n" + samples)

    client, transport = httpx.AsyncClient, httpx.MockTransport(answer)
    monkeypatch.setattr(three_ways, "server_process", server_process)
    monkeypatch.setattr(three_ways, "run_child", run_child)
    monkeypatch.setattr(
        three_ways.httpx,
        "AsyncClient",
        lambda base_url, timeout: client(base_url=base_url, transport=transport),
    )
    return seen


def test_three_ways_are_printed_beside_each_other(command, world, tmp_path):
    status, out, _ = command(
        three_ways, "--runs", 2, "--python", "/env/python", "--json", tmp_path / "out.json"
    )
    assert status == 0
    assert [" ".join(line.split()) for line in out.splitlines()[1:4]] == [
        "plain 4 400 400 (1.00) 20.0 (1.00) 200 200",
        "zero hints 4 400 220 (0.55) 10.0 (0.50) 140 80",
        "one argument 4 400 175 (0.44) 6.7 (0.33) 125 50",
    ]
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["versions"] == VERSIONS["versions"]
    assert kept["ways"]["zero hints"]["computed_by_agent"] == {"planner": 140, "writer": 80}
    assert kept["ways"]["one argument"]["hints_applied"] == 4


def test_ways_differ_in_the_predictor_and_in_the_argument(command, world):
    assert command(three_ways, "--runs", 2, "--python", "/env/python")[0] == 0
    common = [*three_ways.FULL.flags]
    assert world.servers == [[*common, "--predictor=none"], common, common]
    assert [options.hints for _, options, _ in world.apps] == [False, False, True]
    for python, options, path in world.apps:
        assert (python, path) == ("/env/python", str(three_ways.ROOT))
        assert (options.url, options.model, options.runs) == ("http://server", "served", 2)


def test_a_quick_run_has_a_tiny_model(command, world):
    world.applied = 2
    assert command(three_ways, "--quick")[0] == 0
    assert all(flags[len(three_ways.QUICK.flags)].startswith("--model=") for flags in world.servers)
    assert world.apps[0][0] == str(three_ways.default_python())


def test_hints_that_were_not_applied_are_an_error(command, world):
    world.applied = 3
    status, out, err = command(three_ways, "--runs", 2)
    assert status == 1
    assert "one argument" in out
    assert "hints of 3 of 4 calls were applied" in err


def test_an_app_that_fails_is_one_line(command, world):
    world.failure = "APIConnectionError: no server"
    status, _, err = command(three_ways, "--python", "/env/python")
    assert status == 1
    assert err == "three_ways: the app failed in /env/python: APIConnectionError: no server\n"


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ({"versions": {"a": "1", "b": None}}, "{} lacks b; install with: {} -m pip install b"),
        ({}, "{} is no Python interpreter"),
    ],
)
def test_an_interpreter_without_the_packages_is_one_line(
    command, world, monkeypatch, printed, message
):
    monkeypatch.setattr(three_ways, "run_child", lambda *_: printed)
    status, out, err = command(three_ways, "--python", "/env/python")
    assert (status, out, world.servers) == (1, "", [])
    assert err == f"three_ways: {message.format('/env/python', '/env/python')}\n"


def test_an_interpreter_that_is_not_there_is_one_line(command, tmp_path):
    status, _, err = command(three_ways, "--python", tmp_path / "python")
    assert status == 1
    assert err.startswith(f"three_ways: cannot start {tmp_path}/python (No such file")
    assert "make clients" in err
    assert err.count("\n") == 1


def test_an_interpreter_is_asked_by_a_child():
    """That of the tests has no frameworks of agents."""
    with pytest.raises(ChildError, match="lacks langgraph and langchain-openai"):
        three_ways.versions_of(three_ways.absolute_path(sys.executable))
