"""The table of open connections."""

from __future__ import annotations

from kvflow_jax.serve.connections import ConnectionTable


class FakeConnection:
    def __init__(self) -> None:
        self.asked_s: list[float] = []
        self.is_closed = False

    def close_if_late(self, now_s: float) -> None:
        self.asked_s.append(now_s)

    def make_room(self) -> None:
        self.is_closed = True


def table_of(num: int, max_connections: int) -> tuple[ConnectionTable, list[FakeConnection]]:
    table = ConnectionTable(max_connections, timeout_s=1.0)
    connections = [FakeConnection() for _ in range(num)]
    assert all(table.add(connection) for connection in connections)
    return table, connections


def test_one_more_closes_that_which_waits_longest() -> None:
    table, (first, second, third) = table_of(3, max_connections=3)
    table.set_served(first)
    table.set_served(second)
    table.set_waiting(second)
    table.set_waiting(first)
    assert table.add(FakeConnection())
    assert (first.is_closed, second.is_closed, third.is_closed) == (False, False, True)
    assert table.add(FakeConnection())
    assert second.is_closed
    assert len(table) == 3


def test_connections_that_are_served_are_kept() -> None:
    table, connections = table_of(2, max_connections=2)
    for connection in connections:
        table.set_served(connection)
    assert not table.add(FakeConnection())
    assert not any(connection.is_closed for connection in connections)
    table.remove(connections[0])
    table.remove(connections[0])
    assert table.add(FakeConnection())


def test_a_closed_connection_waits_for_nobody() -> None:
    table, (connection,) = table_of(1, max_connections=1)
    table.remove(connection)
    table.set_waiting(connection)
    assert table.add(FakeConnection())
    assert not connection.is_closed


def test_all_are_asked_whether_they_are_late() -> None:
    table, connections = table_of(2, max_connections=2)
    table.close_late(7.0)
    assert [connection.asked_s for connection in connections] == [[7.0], [7.0]]
