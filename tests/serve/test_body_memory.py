"""The memory of all bodies that are being read."""

from __future__ import annotations

import pytest

from kvflow_jax.serve.body_memory import BodyMemory
from kvflow_jax.serve.errors import ApiError


def test_bodies_share_a_budget_and_give_it_back() -> None:
    memory = BodyMemory(100, max_bytes_each=80)
    with memory.reservation("a") as first, memory.reservation("b") as second:
        first.grow(60)
        second.grow(40)
        with pytest.raises(ApiError) as raised:
            second.grow(1)
        assert (raised.value.status, raised.value.code) == (503, "too_many_bodies")
        assert raised.value.headers == {"Retry-After": "1"}
        assert memory.used_bytes == 100
    assert memory.used_bytes == 0


def test_a_tenant_takes_only_its_part() -> None:
    memory = BodyMemory(100, max_bytes_each=80)
    with memory.reservation("a") as first, memory.reservation("a") as second:
        first.grow(60)
        with pytest.raises(ApiError):
            second.grow(21)
        with memory.reservation("b") as other:
            other.grow(40)


def test_a_body_that_fails_gives_its_bytes_back() -> None:
    memory = BodyMemory(100, max_bytes_each=80)

    def fail() -> None:
        with memory.reservation("a") as one:
            one.grow(50)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert memory.used_bytes == 0
