"""Length-prefixed messages over TCP."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from kvflow_jax.distributed.messages import Message, decode, encode

_LENGTH = struct.Struct("!I")
MAX_MESSAGE_BYTES = 1 << 30
# A host without power or network closes no connection. After this many seconds without an answer
# to TCP keepalive probes, its connections fail.
KEEPALIVE_TIMEOUT_S = 30


def frame(message: Message) -> bytes:
    """Return a message as sent: the length of its encoding, then the encoding."""
    data = encode(message)
    return _LENGTH.pack(len(data)) + data


class Connection:
    """One end of a TCP connection. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._send_lock = threading.Lock()  # keeps frames of several threads apart
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # Linux
            timeout_s = KEEPALIVE_TIMEOUT_S
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, timeout_s // 2)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, timeout_s // 6)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * timeout_s)

    def send(self, message: Message) -> None:
        """Send a message.

        Raises:
            OSError: the connection is broken.
        """
        self.send_frame(frame(message))

    def send_frame(self, data: bytes) -> None:
        """Send bytes, such as the result of ``frame``, which several connections may share."""
        with self._send_lock:
            self._socket.sendall(data)

    def receive(
        self, timeout_s: float | None = None, max_bytes: int = MAX_MESSAGE_BYTES
    ) -> Message:
        """Wait for the next message.

        Raises:
            OSError, EOFError: the connection is broken, or silent for ``timeout_s`` seconds.
            ValueError: the data is not a message, or longer than ``max_bytes``.
        """
        self._socket.settimeout(timeout_s)
        try:
            (length,) = _LENGTH.unpack(self._receive(_LENGTH.size))
            if length > max_bytes:
                raise ValueError(f"a message of {length} bytes, more than {max_bytes}")
            return decode(self._receive(length))
        finally:
            self._socket.settimeout(None)

    def receive_bytes(self, num_bytes: int, timeout_s: float) -> bytes:
        """Wait for so many bytes that are no message.

        Raises:
            OSError, EOFError: the connection is broken, or silent for ``timeout_s`` seconds.
        """
        self._socket.settimeout(timeout_s)
        try:
            return self._receive(num_bytes)
        finally:
            self._socket.settimeout(None)

    def close(self) -> None:
        """Close the connection; a thread blocked in ``receive`` raises."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _receive(self, num_bytes: int) -> bytes:
        data = bytearray(num_bytes)
        view = memoryview(data)
        while view:
            num_received = self._socket.recv_into(view)
            if not num_received:
                raise EOFError("the connection was closed")
            view = view[num_received:]
        return bytes(data)
