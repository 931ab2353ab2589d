"""Bounds of the queue by tenant, and when a retry is worthwhile."""

import pytest

from kvflow_jax.engine.backlog import MAX_RETRY_AFTER_S, TOTAL_FACTOR, Backlog
from kvflow_jax.errors import QueueFullError


def fill(backlog, tenant, now=0.0):
    """Add requests of a tenant until one is refused; return how many there are."""
    for num in range(1_000):
        try:
            backlog.check(tenant, 1, now)
        except QueueFullError:
            return num
        backlog.add(tenant, now)
    raise AssertionError


def test_one_tenant_fills_its_own_places_only():
    backlog = Backlog(8)
    assert fill(backlog, "a") == 8
    backlog.check("b", 8, 0.0)
    with pytest.raises(QueueFullError, match="8 of your requests"):
        backlog.check("a", 1, 0.0)


def test_whoever_comes_later_finds_a_place():
    backlog = Backlog(8)
    nums = [fill(backlog, str(i)) for i in range(6)]
    assert nums == [8, 8, 8, 4, 2, 1]
    assert len(backlog) < 8 * TOTAL_FACTOR
    with pytest.raises(QueueFullError, match="of many") as raised:
        backlog.check("7", 2, 0.0)
    assert "31" not in str(raised.value)  # what others have queued
    backlog.check("7", 1, 0.0)


def test_a_lower_bound_of_a_class_counts():
    backlog = Backlog(8)
    backlog.check("a", 2, 0.0, 2)
    backlog.add("a", 0.0)
    with pytest.raises(QueueFullError, match="the bound is 2"):
        backlog.check("a", 2, 0.0, 2)
    backlog.check("a", 7, 0.0, 100)


def retry_after_s(backlog, tenant, num, now):
    with pytest.raises(QueueFullError) as raised:
        backlog.check(tenant, num, now)
    return raised.value.retry_after_s


def test_a_tenants_next_end_is_estimated_from_its_ends():
    backlog = Backlog(8)
    assert backlog.retry_after_s("a", 0.0) == 1
    fill(backlog, "a")
    for second in (4.0, 8.0):
        backlog.end("a", second)
    assert backlog.retry_after_s("a", 8.0) == 4
    assert backlog.retry_after_s("b", 8.0) == 1


def test_retry_after_is_the_time_in_which_the_missing_places_become_free():
    backlog = Backlog(8)
    fill(backlog, "a")
    assert retry_after_s(backlog, "a", 1, 0.0) == 1
    # Nothing has ended for 5 seconds.
    assert retry_after_s(backlog, "a", 1, 5.0) == 5
    for second in (6.0, 8.0, 10.0, 12.0):
        backlog.end("a", second)
        backlog.add("a", second)
    assert retry_after_s(backlog, "a", 1, 12.0) == 3  # four ends in twelve seconds
    assert retry_after_s(backlog, "a", 5, 12.0) == 15
    assert retry_after_s(backlog, "a", 1, 1e9) == MAX_RETRY_AFTER_S


def test_the_rate_is_of_recent_ends():
    backlog = Backlog(8)
    fill(backlog, "a")
    for i in range(200):
        backlog.end("a", 1_000.0 + i * 3)
        backlog.add("a", 1_000.0 + i * 3)
    assert retry_after_s(backlog, "a", 2, 1_000.0 + 199 * 3) == 6


def test_a_tenant_without_requests_is_forgotten():
    backlog = Backlog(8)
    fill(backlog, "a")
    for second in range(8):
        backlog.end("a", float(second))
    assert not backlog._accounts
    assert len(backlog) == 0
    assert fill(backlog, "a", 100.0) == 8
    assert retry_after_s(backlog, "a", 1, 102.0) == 2
