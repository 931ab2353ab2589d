"""The open connections of a server: their number, and those whose clients are late."""

from __future__ import annotations

from typing import Protocol


class Connection(Protocol):
    """What the table needs of a connection."""

    def close_if_late(self, now_s: float) -> None:
        """Close it if its client has had its time; ``now_s`` is the loop's clock."""

    def make_room(self) -> None:
        """Close it, because another client wants to be served."""


class ConnectionTable:
    """The open connections. Runs on the event loop.

    Args:
        max_connections: how many may be open. For one more, that one is closed whose client has
            been waited for longest: idle, or sending its request.
        timeout_s: the time that a client has for its part.
    """

    def __init__(self, max_connections: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._max_connections = max_connections
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}  # for their clients, longest first

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> bool:
        """Add a connection, which waits for its client; return False if all others are served."""
        if len(self._open) >= self._max_connections:
            if not self._waiting:
                return False
            longest = next(iter(self._waiting))
            self.remove(longest)
            longest.make_room()
        self._open.add(connection)
        self._waiting[connection] = None
        return True

    def set_served(self, connection: Connection) -> None:
        """Note that a request has been received, so that the client waits for the server."""
        self._waiting.pop(connection, None)

    def set_waiting(self, connection: Connection) -> None:
        """Note that the server waits for the client from now on."""
        if connection in self._open:
            self._waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forget a connection. Idempotent."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)

    def close_late(self, now_s: float) -> None:
        """Close the connections whose clients are late."""
        for connection in list(self._open):
            connection.close_if_late(now_s)
