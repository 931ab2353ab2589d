"""The memory of the bodies of all unfinished requests."""

from __future__ import annotations

import pytest

from kvflow_jax.serve.body_memory import BodyMemory, Reservation
from kvflow_jax.serve.errors import ApiError


def new_memory() -> BodyMemory:
    return BodyMemory(100, lambda tenant: {"a": 17}.get(tenant, 1))


def refusal_of(one: Reservation, num_bytes: int) -> tuple[int, str]:
    with pytest.raises(ApiError) as raised:
        one.grow(num_bytes)
    assert raised.value.code == "too_many_bodies"
    assert raised.value.headers is not None
    return raised.value.status, raised.value.headers["Retry-After"]


def test_a_tenant_takes_half_and_gives_it_back() -> None:
    memory = new_memory()
    with memory.reservation("a") as first, memory.reservation("a") as second:
        first.grow(30)
        second.grow(20)
        assert refusal_of(second, 1) == (429, "17")
        assert memory.used_bytes == 50
    assert memory.used_bytes == 0


def test_one_that_comes_later_finds_some() -> None:
    memory = new_memory()
    with memory.reservation("a") as first, memory.reservation("b") as second:
        first.grow(50)
        second.grow(25)
        assert refusal_of(second, 1) == (503, "1")
        assert refusal_of(first, 1) == (503, "17")
        with memory.reservation("a") as other:
            assert refusal_of(other, 1) == (429, "17")
        with memory.reservation("c") as third:
            third.grow(12)


def test_a_body_that_fails_gives_its_bytes_back() -> None:
    memory = new_memory()

    def fail() -> None:
        with memory.reservation("a") as one:
            one.grow(50)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert memory.used_bytes == 0
