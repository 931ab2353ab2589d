"""The map that bounds the bytes of each tenant, and of all together."""

from hypothesis import example, given
from hypothesis import strategies as st

from kvflow_jax.bounds.tenant_lru import ENTRY_BYTES, TenantLru

SIZE = ENTRY_BYTES  # a value of 0 bytes


def test_the_least_recently_used_of_a_tenant_is_evicted():
    evicted = []
    lru = TenantLru(3 * SIZE, lambda key, value: evicted.append((key, value)))
    lru.put("b", "other", 9, 0)
    for key in "xyz":
        lru.put("a", key, ord(key), 0)
    assert lru.get("a", "y") == ord("y")  # no use of it
    assert lru.use("a", "x") == ord("x")
    assert lru.use("a", "none") is lru.get("none", "x") is None
    lru.put("a", "w", 1, SIZE)
    assert evicted == [("y", ord("y")), ("z", ord("z"))]
    assert lru.keys("a") == ["x", "w"]
    assert lru.get("b", "other") == 9
    assert (lru.usage.num_values, lru.usage.num_bytes, lru.usage.num_evicted) == (3, 4 * SIZE, 2)


def test_a_value_that_grows_evicts_others_and_never_itself():
    lru = TenantLru(3 * SIZE)
    for key in "xyz":
        lru.put("a", key, key, 0)
    lru.resize("a", "x", SIZE)
    assert lru.keys("a") == ["x", "z"]
    lru.resize("a", "x", 100 * SIZE)
    assert lru.keys("a") == ["x"]
    lru.resize("a", "none", 5)
    assert lru.pop("a", "x") == "x"
    assert lru.pop("a", "x") is None
    assert not len(lru)
    assert lru.usage.num_bytes == 0


def test_what_values_share_counts_for_their_tenant():
    lru = TenantLru(4 * SIZE)
    lru.share("a", SIZE)  # nobody there to share it
    for key in "xyz":
        lru.put("a", key, key, 0)
    lru.share("a", 2 * SIZE)
    lru.put("a", "w", "w", 0)
    assert lru.keys("a") == ["z", "w"]
    lru.share("a", -2 * SIZE)
    lru.put("a", "v", "v", 0)
    assert lru.keys("a") == ["z", "w", "v"]
    lru.check_integrity()


def test_many_tenants_share_a_budget_and_the_largest_gives_way():
    lru = TenantLru(4 * SIZE, max_full_tenants=2)
    for key in range(3):
        lru.put("a", key, key, 0)
    for i in range(5):
        lru.put(f"t{i}", 0, 0, 0)
    assert lru.usage.num_bytes == 8 * SIZE
    lru.put("new", 0, 0, 0)
    assert lru.keys("a") == [1, 2]
    assert all(lru.get(f"t{i}", 0) == 0 for i in range(5))
    lru.check_integrity()


def test_an_evicted_value_may_take_others_with_it():
    lru = TenantLru(2 * SIZE, lambda key, value: lru.pop("a", value))
    lru.put("a", "x", "y", 0)
    lru.put("a", "y", "x", 0)
    lru.put("a", "z", "z", 0)
    assert lru.keys("a") == ["z"]
    lru.put("a", "w", "z", 5 * SIZE)
    assert lru.keys("a") == ["w"]
    lru.check_integrity()


def test_the_oldest_that_are_due_are_removed_and_no_more_than_asked_for():
    lru = TenantLru(100 * SIZE)
    for tenant in "ab":
        for number in (1, 2, 5, 3):
            lru.put(tenant, (tenant, number), number, 0)
    is_due = (4).__gt__
    assert lru.pop_oldest(is_due, 3) == [(("a", 1), 1), (("a", 2), 2), (("b", 1), 1)]
    assert lru.pop_oldest(is_due, 3) == [(("b", 2), 2)]
    assert lru.pop_oldest(is_due, 3) == []  # what is behind one that is not due was used later
    assert sorted(lru) == [("a", 3), ("a", 5), ("b", 3), ("b", 5)]
    lru.check_integrity()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "resize", "pop", "use"]),
            st.sampled_from("abc"),
            st.integers(0, 4),
            st.integers(0, 3 * SIZE),
        )
    )
)
@example([("put", "a", 0, 0), ("put", "c", 0, 717), ("put", "b", 0, 784)])
def test_budgets_hold_whatever_is_done(actions):
    held = {}
    lru = TenantLru(4 * SIZE, lambda key, value: held.pop(value), max_full_tenants=2)
    for action, tenant, key, num_bytes in actions:
        if action == "put":
            held[tenant, key] = num_bytes
            lru.put(tenant, key, (tenant, key), num_bytes)
        elif action == "resize":
            if (tenant, key) in held:
                held[tenant, key] = num_bytes
            lru.resize(tenant, key, num_bytes)
        elif action == "pop":
            held.pop((tenant, key), None)
            lru.pop(tenant, key)
        else:
            lru.use(tenant, key)
        lru.check_integrity()
        assert len(lru) == len(held)
        assert lru.usage.num_bytes == sum(held.values()) + SIZE * len(held)
        for name in "abc":
            sizes = [size + SIZE for (owner, _), size in held.items() if owner == name]
            assert sum(sizes) <= 4 * SIZE or len(sizes) == 1
        assert lru.usage.num_bytes <= 8 * SIZE
