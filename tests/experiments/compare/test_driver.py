"""The driver against a server that answers when the test says so."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments.compare.call_hints import declared, nothing
from experiments.compare.driver import Driver, RealServer
from experiments.workloads.base import Call, Run, Workload
from kvflow_jax.errors import KVFlowError
from kvflow_jax.requests.outputs import EngineStats

TOKENS = np.arange(4, dtype=np.int32)


class FakeServer:
    """Collects requests and timers; ``finish`` answers the oldest request."""

    def __init__(self):
        self.stats = EngineStats()
        self.requests = []
        self.timers = []

    def submit(self, spec, on_output):
        self.requests.append((spec, on_output))

    def call_later(self, seconds, call):
        self.timers.append((seconds, call))

    def finish(self, tokens=(7, 8), error=None):
        stats = SimpleNamespace(
            **{"arrival_s": 0.0, "first_token_s": 1.0, "finished_s": 3.0},
            **{"num_prompt_tokens": 4, "num_cached_tokens": 1, "num_computed_tokens": 3},
            num_cached_host_tokens=0,
        )
        _, on_output = self.requests.pop(0)
        on_output(
            SimpleNamespace(
                token_ids=list(tokens), finish_reason="length", stats=stats, error=error
            )
        )


def workload(*calls, start_s=0.0):
    return Workload("test", (Run("tenant", "run", None, calls, start_s),))


def test_a_call_starts_once_its_inputs_end_and_reads_their_outputs():
    server = FakeServer()
    driver = Driver(
        workload(Call("a", (TOKENS,), 4, 2), Call("b", (TOKENS, 0), 4, 2, after=(0,))), server
    )
    driver.start()
    assert len(server.requests) == 1
    server.finish()
    ((spec, _),) = server.requests
    assert spec.prompt_ids.tolist() == [0, 1, 2, 3, 7, 8]
    assert (spec.user, spec.hints.tenant) == ("tenant", "tenant")
    assert spec.hints.agent_id == "b"
    server.finish()
    records = driver.wait(0)
    assert [record.agent for record in records] == ["a", "b"]
    assert records[0].num_fixed_recomputed == 3
    assert (records[0].ttft_s, records[0].latency_s) == (1.0, 3.0)


def test_pauses_and_arrivals_are_timers_of_the_server():
    server = FakeServer()
    calls = Call("a", (TOKENS,), 4, 2), Call("b", (TOKENS,), 4, 2, after=(0,), pause_s=2.0)
    Driver(workload(*calls, start_s=5.0), server).start()
    ((seconds, submit),) = server.timers
    assert seconds == 5.0
    submit()
    server.finish()
    assert server.timers[-1][0] == 2.0


def test_hints_are_left_out_on_request_and_for_calls_without_an_agent():
    for agent, hints_of in (("a", nothing), ("", declared)):
        server = FakeServer()
        Driver(workload(Call(agent, (TOKENS,), 4, 2)), server, hints_of=hints_of).start()
        spec = server.requests[0][0]
        assert spec.hints is not None
        assert spec.hints.is_empty
        assert spec.agents_tenant == "tenant"
        assert spec.num_system == (4 if agent else None)


def test_a_failed_call_ends_the_run_with_its_error():
    server = FakeServer()
    driver = Driver(workload(Call("a", (TOKENS,), 4, 2)), server)
    driver.start()
    server.finish(error=KVFlowError("broken"))
    with pytest.raises(KVFlowError, match="broken"):
        driver.wait(0)


def test_a_refused_call_ends_the_run_with_its_error():
    server = FakeServer()

    def refuse(*_, **__):
        raise KVFlowError("full")

    server.submit = refuse
    driver = Driver(workload(Call("a", (TOKENS,), 4, 2)), server)
    driver.start()
    with pytest.raises(KVFlowError, match="full"):
        driver.wait(0)


def test_calls_that_do_not_end_are_counted_in_the_timeout():
    driver = Driver(workload(Call("a", (TOKENS,), 4, 2)), FakeServer())
    driver.start()
    with pytest.raises(TimeoutError, match="0 of 1 calls"):
        driver.wait(0)


def test_a_real_server_submits_to_its_engine():
    engine = SimpleNamespace(submit=object(), stats=object())
    server = RealServer(engine)
    assert server.submit is engine.submit
    assert server.stats is engine.stats
