"""A map of values by tenant, bounded in bytes: the least recently used are evicted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvflow_jax.errors import IntegrityError

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# Tenants may be many, as without API keys each address is one: all of them together get the bytes
# of so many.
MAX_FULL_TENANTS = 8
# Of an entry beside its value: two nodes of hash tables, and the pair that they hold.
ENTRY_BYTES = 300


@dataclass(frozen=True, slots=True)
class Usage:
    """What a ``TenantLru`` holds, and how many values it has evicted so far."""

    num_values: int = 0
    num_bytes: int = 0
    num_evicted: int = 0


class TenantLru(Generic[Key, Value]):
    """Values by tenant and key, within a budget of bytes for each tenant and for all of them.

    A value that does not fit evicts the least recently used ones of its own tenant. If all tenants
    together are over their budget, those of the tenant that has most are evicted. The value used
    last stays, however large it is; a tenant without another one is passed over. Not thread-safe.

    Args:
        max_bytes: budget of one tenant.
        on_evict: called with each key and value that was evicted; it may use the map.
        max_full_tenants: tenants whose budgets make up that of all together.
    """

    def __init__(
        self,
        max_bytes: int,
        on_evict: Callable[[Key, Value], object] = lambda key, value: None,
        *,
        max_full_tenants: int = MAX_FULL_TENANTS,
    ) -> None:
        self._max_bytes, self._max_total_bytes = max_bytes, max_full_tenants * max_bytes
        self._on_evict = on_evict
        self._tenants: dict[str, _Tenant[Key, Value]] = {}
        self._num_values = self._num_bytes = self._num_evicted = 0

    def __len__(self) -> int:
        return self._num_values

    @property
    def usage(self) -> Usage:
        return Usage(self._num_values, self._num_bytes, self._num_evicted)

    def get(self, tenant: str, key: Key) -> Value | None:
        """Return a value, None if there is none; this is no use of it."""
        entry = self._find(tenant, key)
        return None if entry is None else entry.value

    def use(self, tenant: str, key: Key) -> Value | None:
        """Return a value, and make it the last one to be evicted; None if there is none."""
        entry = self._find(tenant, key)
        if entry is None:
            return None
        self._tenants[tenant].entries.move_to_end(key)
        return entry.value

    def put(self, tenant: str, key: Key, value: Value, num_bytes: int) -> None:
        """Add or replace a value, the last one to be evicted; evict others to make room."""
        self.pop(tenant, key)
        entries = self._tenants.setdefault(tenant, _Tenant()).entries
        entries[key] = _Entry(value, num_bytes + ENTRY_BYTES)
        self._num_values += 1
        self._add_bytes(tenant, num_bytes + ENTRY_BYTES)
        self._evict(tenant, key)

    def resize(self, tenant: str, key: Key, num_bytes: int) -> None:
        """Record the size of a value that has changed; evict others to make room."""
        entry = self._find(tenant, key)
        if entry is not None and entry.num_bytes != num_bytes + ENTRY_BYTES:
            grown = num_bytes + ENTRY_BYTES - entry.num_bytes
            entry.num_bytes += grown
            self._add_bytes(tenant, grown)
            self._evict(tenant, key)

    def pop(self, tenant: str, key: Key) -> Value | None:
        """Remove a value and return it; None if there is none."""
        record = self._tenants.get(tenant)
        entry = None if record is None else record.entries.pop(key, None)
        if record is None or entry is None:
            return None
        self._num_values -= 1
        self._add_bytes(tenant, -entry.num_bytes)
        if not record.entries:
            self._num_bytes -= record.num_bytes  # what its values shared
            del self._tenants[tenant]
        return entry.value

    def share(self, tenant: str, num_bytes: int) -> None:
        """Add to a tenant's bytes, or subtract, what several of its values have in common.

        It counts until the tenant has no values any more.
        """
        if tenant in self._tenants:
            self._add_bytes(tenant, num_bytes)

    def keys(self, tenant: str) -> list[Key]:
        """Return the keys of a tenant, the least recently used first."""
        record = self._tenants.get(tenant)
        return [] if record is None else list(record.entries)

    def pop_oldest(
        self, is_due: Callable[[Value], bool], max_values: int
    ) -> list[tuple[Key, Value]]:
        """Remove and return the least recently used values of each tenant that are due.

        Args:
            max_values: at most so many, for one call; the others remain for the next.
        """
        popped: list[tuple[Key, Value]] = []
        for tenant in list(self._tenants):
            while len(popped) < max_values and (record := self._tenants.get(tenant)):
                key, entry = next(iter(record.entries.items()))
                if not is_due(entry.value):
                    break
                self.pop(tenant, key)
                popped.append((key, entry.value))
        return popped

    def __iter__(self) -> Iterator[Key]:
        for record in self._tenants.values():
            yield from record.entries

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the counts are those of the values."""
        records = self._tenants.values()
        if (
            self._num_values != sum(len(record.entries) for record in records)
            or self._num_bytes != sum(record.num_bytes for record in records)
            or not all(record.entries for record in records)
        ):
            raise IntegrityError("the bytes of tenants are counted wrong")

    def _find(self, tenant: str, key: Key) -> _Entry[Value] | None:
        record = self._tenants.get(tenant)
        return None if record is None else record.entries.get(key)

    def _add_bytes(self, tenant: str, num_bytes: int) -> None:
        self._tenants[tenant].num_bytes += num_bytes
        self._num_bytes += num_bytes

    def _evict(self, tenant: str, kept: Key) -> None:
        """Evict values until the budgets hold, but not the value ``kept`` of ``tenant``."""
        while (record := self._tenants.get(tenant)) and record.num_bytes > self._max_bytes:
            if not self._evict_oldest(tenant, kept):
                break
        while self._num_bytes > self._max_total_bytes:
            # A tenant whose only value is the kept one has nothing to evict.
            candidates = (
                name
                for name, record in self._tenants.items()
                if name != tenant or len(record.entries) > 1
            )
            largest = max(
                candidates, key=lambda name: self._tenants[name].num_bytes, default=tenant
            )
            if not self._evict_oldest(largest, kept if largest == tenant else None):
                break

    def _evict_oldest(self, tenant: str, kept: Key | None) -> bool:
        """Evict a tenant's least recently used value; False if that is none, or ``kept``."""
        record = self._tenants.get(tenant)
        key = next((key for key in record.entries if key != kept), None) if record else None
        if key is None:
            return False
        value = self.pop(tenant, key)
        self._num_evicted += 1
        assert value is not None
        self._on_evict(key, value)
        return True


class _Entry(Generic[Value]):
    __slots__ = ("num_bytes", "value")

    def __init__(self, value: Value, num_bytes: int) -> None:
        self.value, self.num_bytes = value, num_bytes


class _Tenant(Generic[Key, Value]):
    """The values of a tenant, least recently used first, and their bytes with what they share."""

    __slots__ = ("entries", "num_bytes")

    def __init__(self) -> None:
        self.entries: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        self.num_bytes = 0
