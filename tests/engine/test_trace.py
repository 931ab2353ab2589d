"""The trace file, as a viewer reads it."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from kvflow_jax.engine.trace import ChromeTrace
from kvflow_jax.errors import ConfigError
from kvflow_jax.requests.outputs import FinishReason
from tests.support.agent_cycle import AGENTS, KVFLOW, call, cycle
from tests.support.token_runner import Client, make_engine, prompt_without_eos, run


def test_steps_transfers_stalls_and_requests_have_tracks_of_their_own(tmp_path):
    path = tmp_path / "trace.json"
    engine = make_engine(num_pages=32, cache=KVFLOW)
    engine.tracer = ChromeTrace(path)
    graph = cycle()
    for round_ in range(2):
        for agent in AGENTS:
            call(engine, agent, round_, graph)
    engine.tracer.on_stall(1.0, 2.0)
    engine.tracer.close()
    engine.tracer.close()
    events = json.loads(path.read_text())
    tracks = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }
    by_track = {name: [] for name in tracks.values()}
    for event in events:
        if event["ph"] == "X":
            by_track[tracks[event["pid"], event["tid"]]].append(event)
    assert len(by_track["steps"]) == engine.stats.num_steps
    assert by_track["host to device"][0]["name"] in ("prefetch", "load")
    assert by_track["device to host"][0]["args"]["bytes"] > 0
    assert by_track["stall"][0]["dur"] == 1e6
    steps = by_track["steps"]
    for step, following in pairwise(steps):
        # The device runs one step at a time; timestamps are microseconds.
        assert following["ts"] >= step["ts"] + step["dur"] - 1.0
    began = [event["name"] for event in events if event["ph"] == "b"]
    assert began.count("agent0") == 2
    assert len(began) == sum(event["ph"] == "e" for event in events)


def test_a_trace_that_cannot_be_written_is_an_error_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        ChromeTrace(tmp_path / "missing" / "trace.json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_trace_and_nothing_else(caplog):
    engine = make_engine()
    engine.tracer = ChromeTrace("/dev/full")
    for seed in range(60):
        client = Client(engine, prompt_without_eos(9, seed))
        run(engine)
        assert client.reason == FinishReason.LENGTH
    engine.tracer.close()
    assert caplog.text.count("the trace ends here") == 1
