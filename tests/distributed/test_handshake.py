"""Which processes process 0 accepts, and why it refuses others."""

import socket
import struct
import threading
from dataclasses import replace

import pytest

from kvflow_jax.distributed import handshake
from kvflow_jax.distributed.authentication import authenticate_leader
from kvflow_jax.distributed.connection import Connection
from kvflow_jax.distributed.handshake import Handshakes, refusal_reason
from kvflow_jax.distributed.messages import Drop, Hello, Refused
from kvflow_jax.errors import ConfigError
from tests.distributed import pairs


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def connect(listener):
    return socket.create_connection(listener.getsockname())


def greet(listener, hello, secret=b""):
    """Return the connection of a process that has proved its secret and sent its first message.

    The listener need not accept it yet.
    """
    connection = Connection(connect(listener))

    def run():
        authenticate_leader(connection, secret, 30.0)
        connection.send(hello)

    threading.Thread(target=run).start()
    return connection


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(1, 3, "there", {"--dtype": "float32"}), "--num-processes 3, process 0 with 2"),
        (Hello(1, 2, "there", {"--dtype": "bfloat16"}), "--dtype bfloat16, process 0 with float32"),
        (Hello(1, 2, "there", {}), "--dtype None, process 0 with float32"),
    ],
)
def test_a_process_of_other_flags_is_refused_with_the_difference(hello, reason):
    refused = refusal_reason(hello, pairs.process_info(0), {"--dtype": "float32"}, {})
    assert refused == f"process 1 was started with {reason}"


def test_a_second_process_of_the_same_id_is_refused():
    accepted = {1: ("there", None)}
    reason = refusal_reason(Hello(1, 2, "here", {}), pairs.process_info(0), {}, accepted)
    assert reason == "there are two processes 1: give each its own --process-id"


def test_a_process_of_equal_flags_may_join():
    settings = {"--dtype": "float32"}
    hello = Hello(1, 2, "there", settings)
    assert refusal_reason(hello, pairs.process_info(0), settings, {}) == ""


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n\r\n", struct.pack("!I", 2 << 20), b"", b"\0", struct.pack("!I", 9)],
)
def test_a_peer_without_a_hello_delays_nobody_and_is_disconnected(monkeypatch, listener, sent):
    monkeypatch.setattr(handshake, "HELLO_TIMEOUT_S", 600.0)
    stranger = connect(listener)
    stranger.sendall(sent)
    follower = greet(listener, Hello(1, 2, "there", {}))
    accepted = Handshakes(pairs.process_info(0), {}).accept_all(listener, 30.0)
    assert accepted[1][0] == "there"
    stranger.settimeout(30)
    assert len(stranger.recv(32, socket.MSG_WAITALL)) == 32  # what it is to prove
    assert stranger.recv(1) == b""  # disconnected
    for connection in (stranger, follower, accepted[1][1]):
        connection.close()


def test_a_process_that_was_just_accepted_is_not_disconnected(listener):
    """All may be accepted before the last handshake's thread has returned."""
    go_on = threading.Event()

    class SlowHandshakes(Handshakes):
        def _accept(self, hello, connection):
            reason = super()._accept(hello, connection)
            assert go_on.wait(30)
            return reason

    follower = greet(listener, Hello(1, 2, "there", {}))
    accepted = SlowHandshakes(pairs.process_info(0), {}).accept_all(listener, 30.0)
    follower.send(Drop([1]))
    assert accepted[1][1].receive(30) == Drop([1])
    go_on.set()
    for connection in (follower, accepted[1][1]):
        connection.close()


def test_when_a_process_is_missing_those_that_came_are_refused_too(listener):
    follower = greet(listener, Hello(2, 3, "there", {}))
    handshakes = Handshakes(pairs.process_info(0, 3, port=7), {})
    reason = "process 1 did not join at 127.0.0.1:7 within 1 s: .* --join-timeout-s"
    with pytest.raises(ConfigError, match=reason) as error:
        handshakes.accept_all(listener, 1.0)
    assert follower.receive(30) == Refused(str(error.value))
    late = Hello(1, 3, "there", {})
    assert handshakes._accept(late, follower) == "process 0 no longer waits for followers"
    follower.close()


def test_a_process_without_the_secret_is_not_listened_to(listener):
    info = replace(pairs.process_info(0), secret=b"the secret of the group")
    stranger = Connection(connect(listener))
    stranger.send_frame(bytes(64))
    stranger.send(Hello(1, 2, "stranger", {}))
    follower = greet(listener, Hello(1, 2, "there", {}), info.secret)
    accepted = Handshakes(info, {}).accept_all(listener, 30.0)
    assert accepted[1][0] == "there"
    for connection in (stranger, follower, accepted[1][1]):
        connection.close()


def test_many_silent_peers_hold_few_threads_and_keep_nobody_out(monkeypatch, listener):
    monkeypatch.setattr(handshake, "HELLO_TIMEOUT_S", 600.0)
    monkeypatch.setattr(handshake, "MAX_PENDING", 1)
    handshakes = Handshakes(pairs.process_info(0), {})
    silent = [connect(listener) for _ in range(6)]
    follower = greet(listener, Hello(1, 2, "there", {}))
    accepted = handshakes.accept_all(listener, 30.0)
    assert accepted[1][0] == "there"
    assert len(handshakes._pending) <= 3
    for connection in (*silent, follower, accepted[1][1]):
        connection.close()
