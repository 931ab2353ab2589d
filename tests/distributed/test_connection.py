"""Connections deliver whole messages, and report broken, silent and foreign peers."""

import struct
import threading

import numpy as np
import pytest

from kvflow_jax.distributed.connection import frame
from kvflow_jax.distributed.messages import Drop, Heartbeat, SetSequenceState, Submit, encode
from tests.distributed import pairs


def test_messages_arrive_in_order_and_unchanged():
    table = np.arange(6, dtype=np.int32).reshape(2, 3)
    submit = Submit(3, table[0], table, np.ones((2, 1), np.float32))
    state = SetSequenceState({"seq_slot": np.int32(1), "tokens": table[0]})
    with pairs.connected() as (near, far):
        for message in (submit, state, Drop([1, 2])):
            near.send(message)
            received = far.receive(5)
            assert type(received) is type(message)
            assert encode(received) == encode(message)
        assert received == Drop([1, 2])


def test_one_frame_can_be_sent_to_several_peers():
    data = frame(Drop([1, 2]))
    with pairs.connected() as (near, far), pairs.connected() as (other_near, other_far):
        for connection in (near, other_near):
            connection.send_frame(data)
        assert far.receive(5) == other_far.receive(5) == Drop([1, 2])


def test_messages_of_several_threads_are_not_mixed():
    messages = [Drop(list(range(i, i + 5000))) for i in range(4)]
    with pairs.connected() as (near, far):
        threads = [threading.Thread(target=near.send, args=[message]) for message in messages]
        for thread in threads:
            thread.start()
        received = [far.receive(30) for _ in messages]
        for thread in threads:
            thread.join()
    assert sorted(received, key=lambda drop: drop.array_ids) == messages


def test_a_silent_peer_times_out_and_can_still_be_received_from():
    with pairs.connected() as (near, far):
        with pytest.raises(TimeoutError):
            far.receive(0.01)
        near.send(Heartbeat())
        assert far.receive() == Heartbeat()


def test_a_closed_connection_ends_receive_on_both_sides():
    with pairs.connected() as (near, far):
        near.close()
        with pytest.raises(EOFError, match="closed"):
            far.receive(5)
        with pytest.raises(OSError, match="descriptor"):
            near.receive(5)


def test_a_message_over_the_limit_is_refused_before_it_is_read():
    with pairs.connected() as (near, far):
        near.send_frame(struct.pack("!I", 101))
        with pytest.raises(ValueError, match="101 bytes, more than 100"):
            far.receive(5, max_bytes=100)
