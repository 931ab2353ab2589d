"""How processes meet, and which errors those that cannot meet report."""

import socket
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest

from kvflow_jax.distributed import rendezvous
from kvflow_jax.distributed.messages import Hello
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.distributed.rendezvous import join_leader, start_leader
from kvflow_jax.errors import ConfigError
from tests.distributed.pairs import free_port, process_info

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")


def test_without_a_coordinator_a_follower_names_its_flag():
    with pytest.raises(ConfigError, match=r"cannot be reached at 127.0.0.1:\d+.*--coordinator"):
        join_leader(process_info(1), {}, 0.1)


def test_a_leader_names_the_processes_that_are_missing():
    with pytest.raises(ConfigError, match=r"process 1, 2 did not join .* --join-timeout-s"):
        start_leader(process_info(0, 3), {}, 0.1)


def test_a_port_in_use_is_reported():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"cannot listen on .* choose another port"),
    ):
        start_leader(process_info(0, port=taken.getsockname()[1]), {}, 1.0)


def test_a_coordinator_that_hangs_up_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ConfigError, match=r"process 0 at .* does not answer"):
            join_leader(process_info(1, port=listener.getsockname()[1]), {}, 5.0)
        thread.join()


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(1, 3, "there", {"--dtype": "float32"}), "--num-processes 3, process 0 with 2"),
        (Hello(1, 2, "there", {"--dtype": "bfloat16"}), "--dtype bfloat16, process 0 with float32"),
    ],
)
def test_a_refused_process_reports_why(hello, reason):
    leader_info = process_info(0)
    failed = []

    def try_to_lead():
        try:
            start_leader(leader_info, {"--dtype": "float32"}, 0.5)
        except ConfigError as error:
            failed.append(error)

    thread = threading.Thread(target=try_to_lead)
    thread.start()
    follower = process_info(hello.process_id, hello.num_processes, leader_info.port)
    with pytest.raises(ConfigError, match=reason):
        join_leader(follower, hello.settings, 10.0)
    thread.join()
    assert "did not join" in str(failed[0])  # a refused process does not end the wait for others


def meet(monkeypatch, leader_info):
    """Let process 0 and process 1 meet, without JAX; return the follower's messages until Close."""
    started = []
    monkeypatch.setattr(
        rendezvous, "_start_jax", lambda info, port: started.append((info.process_id, port))
    )
    leaders = []
    thread = threading.Thread(target=lambda: leaders.append(start_leader(leader_info, {}, 30.0)))
    thread.start()
    follower = join_leader(replace(leader_info, process_id=1), {}, 30.0)
    thread.join()
    leaders[0].close()
    messages = list(follower.messages())
    for connection in (leaders[0]._followers[1][1], follower._connection):
        connection.close()
    (first, port), (second, same_port) = sorted(started)
    assert (first, second) == (0, 1)
    assert port == same_port
    return messages


@pytest.mark.parametrize("secret", [b"", b"the secret of the group"])
def test_processes_that_meet_start_jax_at_one_port(monkeypatch, secret):
    assert meet(monkeypatch, replace(process_info(0), secret=secret)) == []


def resolve_to_ipv6(monkeypatch, name):
    """Resolve ``name`` as on a network whose names have IPv6 addresses only."""
    getaddrinfo = socket.getaddrinfo

    def resolve(host, *args, **kwargs):
        return getaddrinfo("::1" if host == name else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("2001:db8::1", ("127.0.0.1", "::1")),
        ("192.0.2.1", ("127.0.0.1", "::1")),
        ("here", ("127.0.0.1", "::1")),
        ("127.0.0.1", ("127.0.0.1",)),
        ("::1", ("::1",)),
        ("localhost", ("::1",)),
    ],
)
def test_process_0_listens_at_every_address_that_followers_may_use(monkeypatch, host, reached):
    resolve_to_ipv6(monkeypatch, "localhost")
    with rendezvous._listen(ProcessInfo(host, 1, 2, 0), 0) as listener:
        for address in ("127.0.0.1", "::1"):
            is_reached = address in reached
            with nullcontext() if is_reached else pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, listener.getsockname()[1])).close()


@needs_ipv6
def test_processes_meet_at_a_name_with_an_ipv6_address_only(monkeypatch):
    resolve_to_ipv6(monkeypatch, "here")
    assert meet(monkeypatch, ProcessInfo("here", free_port(), 2, 0)) == []


def test_processes_of_different_secrets_do_not_meet():
    leader_info = replace(process_info(0), secret=b"the secret of the group")
    failed = []

    def try_to_lead():
        try:
            start_leader(leader_info, {}, 0.5)
        except ConfigError as error:
            failed.append(error)

    thread = threading.Thread(target=try_to_lead)
    thread.start()
    stranger = replace(leader_info, process_id=1, secret=b"another secret")
    with pytest.raises(ConfigError, match="the same KVFLOW_COORDINATOR_SECRET"):
        join_leader(stranger, {}, 10.0)
    thread.join()
    assert "did not join" in str(failed[0])
