"""Both ends of a group in one process, over a real loopback connection."""

import contextlib
import socket

from kvflow_jax.distributed.connection import Connection
from kvflow_jax.distributed.process_group import Follower, Leader
from kvflow_jax.distributed.process_info import ProcessInfo


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def process_info(process_id, num_processes=2, port=None):
    return ProcessInfo("127.0.0.1", port or free_port(), num_processes, process_id)


@contextlib.contextmanager
def connected():
    """Two connections to each other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    ends = Connection(near), Connection(far)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


@contextlib.contextmanager
def group():
    """A leader and its only follower."""
    with connected() as (near, far):
        leader, follower = Leader({1: ("there", near)}), Follower(far)
        yield leader, follower
        leader.close()
        follower._receiver.join(30)  # until it has received Close
