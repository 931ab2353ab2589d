"""Messages over TCP, each with its length before it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from kvflow_jax.distributed.messages import Message, decode, encode

_LENGTH = struct.Struct("!I")
MAX_MESSAGE_BYTES = 1 << 30
# A host that has lost power or network says nothing: after so long it counts as gone.
SILENCE_S = 30


def framed(message: Message) -> bytes:
    """A message as it is sent."""
    data = encode(message)
    return _LENGTH.pack(len(data)) + data


class Connection:
    """One end. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()  # a message is sent whole
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # Linux
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_S // 2)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE_S // 6)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE_S)

    def send(self, message: Message) -> None:
        """Raises:
        OSError: the other end is gone.
        """
        self.send_framed(framed(message))

    def send_framed(self, data: bytes) -> None:
        """``send`` of what is ``framed`` already: once, for many."""
        with self._lock:
            self._socket.sendall(data)

    def receive(
        self, timeout_s: float | None = None, max_bytes: int = MAX_MESSAGE_BYTES
    ) -> Message:
        """The next message.

        Raises:
            OSError, EOFError: the other end is gone, or silent for ``timeout_s`` seconds.
            ValueError: it is none of ours, or longer than ``max_bytes``.
        """
        self._socket.settimeout(timeout_s)
        try:
            (length,) = _LENGTH.unpack(self._receive(_LENGTH.size))
            if length > max_bytes:
                raise ValueError(f"a message of {length} bytes")
            return decode(self._receive(length))
        finally:
            self._socket.settimeout(None)

    def close(self) -> None:
        """Also wakes whoever receives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self, num_bytes: int) -> bytes:
        data = bytearray(num_bytes)
        view = memoryview(data)
        while view:
            num = self._socket.recv_into(view)
            if not num:
                raise EOFError("the connection was closed")
            view = view[num:]
        return bytes(data)
