"""What a tenant may take and do: the class of its API key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from kvflow_jax.errors import ConfigError


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class TenantLimits:
    """The limits of one tenant; None: the server's own, the same for all.

    Attributes:
        is_admin: may drop the cache, read metrics and settings, and see the graphs of others.
        max_priority: requests of a higher priority count as this one against other tenants.
            Among the tenant's own requests every priority counts.
        max_pending: requests that run or wait, one for each completion.
        max_n: completions of one HTTP request.
        max_graphs: registered Agent Step Graphs.
        tokens_per_minute: prompt and output tokens; the tokens of a minute may be used at once.

    Raises:
        ConfigError: names the field.
    """

    is_admin: bool = False
    max_priority: int = 0
    max_pending: int | None = None
    max_n: int | None = None
    max_graphs: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "is_admin":
                is_valid, expected = isinstance(value, bool), "true or false"
            elif field.name == "max_priority":
                is_valid, expected = _is_int(value), "an integer"
            else:
                is_valid = value is None or (_is_int(value) and value >= 1)
                expected = "an integer of at least 1"
            if not is_valid:
                raise ConfigError(f"{field.name} must be {expected}, got {value!r:.40}")

    @classmethod
    def of(cls, data: Mapping[str, object]) -> TenantLimits:
        """Return the limits that the fields of a class or key set; raise ConfigError."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(data) - set(known))
        if unknown:
            raise ConfigError(f"unknown field {unknown[0]!r:.60}; known are {', '.join(known)}")
        return cls(**data)  # type: ignore[arg-type]


DEFAULT_LIMITS = TenantLimits()
ADMIN_LIMITS = TenantLimits(is_admin=True)
