"""How processes meet: what is said to those who cannot."""

import socket
import struct
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.distributed import handshake, rendezvous
from kvflow_jax.distributed.connection import Connection
from kvflow_jax.distributed.messages import Drop, Hello, SetSequenceState, Submit, decode, encode
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.distributed.rendezvous import join_leader, start_leader
from kvflow_jax.errors import ConfigError
from kvflow_jax.serve.__main__ import main
from tests.distributed import pairs

needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")


def place(process_id, num_processes=2, port=None):
    return ProcessInfo("127.0.0.1", port or free_port(), num_processes, process_id)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_messages_are_themselves_at_the_other_end():
    table = np.arange(6, dtype=np.int32).reshape(2, 3)
    submit = Submit(3, table[0], table, np.ones((2, 1), np.float32))
    past = SetSequenceState({"seq_slot": np.int32(1), "tokens": table[0]})
    with pairs.connected() as (near, far):
        for message in (submit, past, Drop([1, 2])):
            near.send(message)
            got = far.receive(5)
            assert type(got) is type(message)
            assert encode(got) == encode(message)
        assert got == Drop([1, 2])


@pytest.mark.parametrize("data", [b"", b"\x00", encode(Drop([1]))[:-1], b"\x92\xa4Evil\x80"])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ValueError, match="no message"):
        decode(data)


def test_all_hear_what_all_say():
    with pairs.group() as (leader, follower):
        heard = []
        thread = threading.Thread(target=lambda: heard.append(follower.gather({"free": None})))
        thread.start()
        assert leader.gather({"free": 3}) == [{"free": 3}, {"free": None}]
        thread.join()
        assert heard == [[{"free": 3}, {"free": None}]]


def test_a_coordinator_that_is_not_there():
    with pytest.raises(ConfigError, match=r"cannot be reached at 127.0.0.1:\d+.*--coordinator"):
        join_leader(place(1), {}, 0.1)


def test_a_process_that_does_not_come():
    with pytest.raises(ConfigError, match=r"process 1, 2 did not come .* --join-timeout-s"):
        start_leader(place(0, 3), {}, 0.1)


def test_a_port_that_is_taken():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"cannot listen on .* choose another port"),
    ):
        start_leader(place(0, port=taken.getsockname()[1]), {}, 1.0)


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (Hello(1, 3, "there", {"--dtype": "float32"}), "--num-processes 3, process 0 with 2"),
        (Hello(1, 2, "there", {"--dtype": "bfloat16"}), "--dtype bfloat16, process 0 with float32"),
    ],
)
def test_processes_that_do_not_fit_are_told_why(hello, why):
    leader_place = place(0)
    failed = []

    def try_to_lead():
        try:
            start_leader(leader_place, {"--dtype": "float32"}, 0.5)
        except ConfigError as error:
            failed.append(error)

    thread = threading.Thread(target=try_to_lead)
    thread.start()
    follower = place(hello.process_id, hello.num_processes, leader_place.port)
    with pytest.raises(ConfigError, match=why):
        join_leader(follower, hello.settings, 10.0)
    thread.join()
    assert "did not come" in str(failed[0])  # others may still have


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n\r\n", struct.pack("!I", 2 << 20), b"", b"\0", struct.pack("!I", 9)],
)
def test_strangers_do_not_keep_anybody_from_joining(monkeypatch, sent):
    monkeypatch.setattr(rendezvous, "_start_jax", lambda place, port: None)
    monkeypatch.setattr(handshake, "HELLO_S", 600.0)
    leader_place = place(0)
    joined = []
    thread = threading.Thread(target=lambda: joined.append(start_leader(leader_place, {}, 30.0)))
    thread.start()
    stranger = rendezvous._reach(leader_place, time.monotonic() + 8)
    stranger.sendall(sent)
    follower = join_leader(place(1, port=leader_place.port), {}, 5.0)
    thread.join()
    stranger.settimeout(30)
    assert stranger.recv(1) == b""  # nobody waits for the rest any more
    stranger.close()
    joined[0].close()
    assert list(follower.messages()) == []
    for connection in (joined[0]._followers[1][1], follower._connection):
        connection.close()


def test_who_has_just_joined_is_no_stranger():
    """All are there before the thread that has heard the last goes on."""
    go_on = threading.Event()

    class Held(handshake.Handshakes):
        def _take(self, hello, connection):
            why_not = super()._take(hello, connection)
            assert go_on.wait(30)
            return why_not

    with socket.create_server(("127.0.0.1", 0)) as listener:
        follower = Connection(socket.create_connection(listener.getsockname()))
        follower.send(Hello(1, 2, "there", {}))
        joined = Held(place(0), {}).run(listener, 30.0)
    follower.send(Drop([1]))
    assert joined[1][1].receive(30) == Drop([1])
    go_on.set()
    for connection in (follower, joined[1][1]):
        connection.close()


def resolve_to_ipv6(monkeypatch, name):
    """As on a network whose names mean addresses of IPv6 only."""
    found = socket.getaddrinfo

    def resolve(host, *args, **how):
        return found("::1" if host == name else host, *args, **how)

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
def test_process_0_listens_wherever_the_others_may_look(monkeypatch, host, reached):
    resolve_to_ipv6(monkeypatch, "localhost")
    with rendezvous._listen(ProcessInfo(host, 1, 2, 0), 0) as listener:
        for address in ("127.0.0.1", "::1"):
            is_reached = address in reached
            with nullcontext() if is_reached else pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, listener.getsockname()[1])).close()


@needs_ipv6
def test_a_coordinator_whose_name_means_an_address_of_ipv6(monkeypatch):
    monkeypatch.setattr(rendezvous, "_start_jax", lambda place, port: None)
    resolve_to_ipv6(monkeypatch, "here")
    first = ProcessInfo("here", free_port(), 2, 0)
    joined = []
    thread = threading.Thread(target=lambda: joined.append(start_leader(first, {}, 30.0)))
    thread.start()
    follower = join_leader(replace(first, process_id=1), {}, 30.0)
    thread.join()
    joined[0].close()
    assert list(follower.messages()) == []
    for connection in (joined[0]._followers[1][1], follower._connection):
        connection.close()


def test_two_that_say_they_are_the_same():
    joined = {1: ("there", None)}
    why = handshake.refusal_reason(Hello(1, 2, "here", {}), place(0), {}, joined)
    assert why == "there is a process 1 already: give each a --process-id of its own"


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--process-id 1", "need --coordinator"),
        ("--coordinator here:1 --process-id 1", "needs --num-processes and --process-id"),
        ("--coordinator here --num-processes 2 --process-id 1", "must be HOST:PORT"),
        ("--coordinator a..b:1 --num-processes 2 --process-id 1", "must be HOST:PORT"),
        (f"--coordinator {'a' * 64}:1 --num-processes 2 --process-id 1", "must be HOST:PORT"),
        ("--coordinator []:1 --num-processes 2 --process-id 1", "must be HOST:PORT"),
        ("--coordinator here:1 --num-processes 2 --process-id 2", "must be 0 to 1"),
        ("--coordinator here:1 --num-processes 2 --process-id 1", "at least --num-processes, 2"),
        ("--coordinator auto", "no cluster"),
    ],
)
def test_flags_that_make_no_group(flags, why, capsys):
    assert main(flags.split()) == 2
    message = capsys.readouterr().err
    assert why in message
    assert message.count("\n") == 1


def test_a_cluster_says_which_process_this_is(monkeypatch):
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "tpu[3-4]", "NTASKS": "2", "PROCID": "1"}
    for name, value in (slurm | {"LOCALID": "0", "STEP_NUM_NODES": "2"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    found = ProcessInfo.find("auto")
    assert (found.host, found.num_processes, found.process_id) == ("tpu3", 2, 1)
    assert list(found.devices) == [0]
