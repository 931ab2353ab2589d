"""Whether something that was computed from contexts still holds."""

from __future__ import annotations

from collections.abc import Iterable

from kvflow_jax.reuse.context import OTHER_KIND, Context


class MadeFrom:
    """The contexts that something was computed from. Versions only rise, so their sum tells.

    Args:
        tolerance: rise of the versions, as a part of the number of contexts, that it outlives; not
            a change of another kind than small ones of chances.
    """

    __slots__ = ("_limit", "contexts")

    def __init__(self, contexts: Iterable[Context], tolerance: float = 0.0) -> None:
        self.contexts = tuple(contexts)
        rise = min(int(tolerance * len(self.contexts)), OTHER_KIND - 1)
        self._limit = _sum_of_versions(self.contexts) + rise

    @property
    def holds(self) -> bool:
        """False once the contexts have changed materially."""
        return _sum_of_versions(self.contexts) <= self._limit


def _sum_of_versions(contexts: tuple[Context, ...]) -> int:
    return sum([context.version for context in contexts])
