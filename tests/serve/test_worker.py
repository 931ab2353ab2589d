from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kvflow_jax.distributed.messages import Failed
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.errors import ConfigError, ModelLoadError
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.worker import run_worker
from tests.serve.serve_fakes import TIMEOUT_S

PROCESS_1 = ProcessInfo("127.0.0.1", 1, 2, 1)


class FakeFollower:
    def __init__(self) -> None:
        self.sent: list[object] = []
        self.asked_to_drain = threading.Event()

    def send(self, message: object) -> None:
        self.sent.append(message)

    def request_shutdown(self) -> None:
        self.asked_to_drain.set()


@pytest.fixture
def follower(monkeypatch: pytest.MonkeyPatch) -> FakeFollower:
    """This process within a group that exists only in the test, and a model that loads at once."""
    follower = FakeFollower()
    monkeypatch.setattr("kvflow_jax.distributed.rendezvous.join_leader", lambda *args: follower)
    monkeypatch.setattr("kvflow_jax.serve.worker.load", lambda config, **options: "model")
    return follower


def follow_with(monkeypatch: pytest.MonkeyPatch, follow: Callable[..., None]) -> None:
    monkeypatch.setattr("kvflow_jax.api.launch.run_follower", follow)


def test_a_worker_exits_with_code_0_after_process_0_has_ended(
    follower: FakeFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    follow_with(monkeypatch, lambda *args: seen.extend(args))
    assert run_worker(ServerConfig(), PROCESS_1) == 0
    assert (seen[0], seen[2]) == ("model", follower)


def test_a_worker_that_cannot_join_exits_with_code_1(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise ConfigError("--dtype differs from process 0")

    monkeypatch.setattr("kvflow_jax.distributed.rendezvous.join_leader", refuse)
    assert run_worker(ServerConfig(), PROCESS_1) == 1
    assert "cannot start: --dtype differs from process 0" in caplog.text


@pytest.mark.parametrize("is_expected", [True, False])
def test_a_worker_that_fails_reports_the_error_to_process_0(
    follower: FakeFollower,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_expected: bool,
) -> None:
    def fail(*args: Any) -> None:
        raise ModelLoadError("no memory") if is_expected else RuntimeError("no memory")

    follow_with(monkeypatch, fail)
    reasons: list[str] = []
    # The real function ends the process.
    monkeypatch.setattr("kvflow_jax.distributed.process_group.exit_now", reasons.append)
    run_worker(ServerConfig(), PROCESS_1)
    assert follower.sent == [Failed("no memory")]
    assert reasons == ["cannot continue: no memory"]
    assert ("Traceback" in caplog.text) is not is_expected


def test_the_first_signal_asks_process_0_to_drain_and_the_second_exits(
    follower: FakeFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    has_exited = threading.Event()

    def exit_process(code: int) -> None:
        codes.append(code)
        has_exited.set()

    def follow(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert follower.asked_to_drain.wait(TIMEOUT_S)
        assert codes == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert has_exited.wait(TIMEOUT_S)

    monkeypatch.setattr("os._exit", exit_process)
    follow_with(monkeypatch, follow)
    handler = signal.getsignal(signal.SIGTERM)
    assert run_worker(ServerConfig(), PROCESS_1) == 0
    assert codes == [128 + signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler
