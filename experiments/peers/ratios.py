"""How fast this engine is relative to the best of its peers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.peers.arms import Arm
from experiments.peers.drivers.columns import CACHED, DECODES, PREFILL
from experiments.peers.loads import LOADS

COLUMNS = (PREFILL, *DECODES, CACHED)
UNITS = {PREFILL: "tokens/s", CACHED: "s", **dict.fromkeys(DECODES, "ms")}
ANY = "any"  # the ratios over peers of any precision

# Figures of an arm by column. A column that was not measured is not there.
Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """This engine's best mode beside the best peer.

    Attributes:
        value: above 1 where this engine is faster.
        ours, peer: the arms that were best.
    """

    value: float
    ours: Arm
    peer: Arm

    @property
    def names(self) -> dict[str, str]:
        """The arms' names, as results have them."""
        return {"ours": self.ours.name, "peer": self.peer.name}


def column_ratios(
    arms: Sequence[Arm], figures: Mapping[str, Figures]
) -> dict[str, dict[str, Ratio]]:
    """Return the ratios of the columns by precision, and over peers of any precision (``ANY``).

    A column that no peer, or no mode of this engine, has measured has no ratio.

    Args:
        figures: by name of the arm.
    """
    precisions = dict.fromkeys(arm.precision for arm in arms)
    groups: dict[str, list[Arm]] = {
        precision: [arm for arm in arms if arm.precision == precision] for precision in precisions
    }
    groups[ANY] = list(arms)
    return {
        group: {
            column: found
            for column in COLUMNS
            if (found := ratio(members, figures, column, column)) is not None
        }
        for group, members in groups.items()
    }


def load_ratios(arms: Sequence[Arm], figures: Mapping[str, Figures]) -> dict[str, Ratio]:
    """Return the ratios of the agentic loads' makespans over the peers' servers."""
    return {
        load: found
        for load in LOADS
        if (found := ratio(arms, figures, load, LOADS[load].peers_load)) is not None
    }


def ratio(
    arms: Iterable[Arm], figures: Mapping[str, Figures], ours: str, peers: str
) -> Ratio | None:
    """Return the ratio of this engine's column over a column of its peers."""
    measured = list(arms)
    best_of_ours = _best([arm for arm in measured if arm.is_ours], figures, ours)
    best_of_peers = _best([arm for arm in measured if not arm.is_ours], figures, peers)
    if best_of_ours is None or best_of_peers is None:
        return None
    a, b = figures[best_of_ours.name][ours], figures[best_of_peers.name][peers]
    return Ratio(a / b if ours == PREFILL else b / a, best_of_ours, best_of_peers)


def _best(arms: Iterable[Arm], figures: Mapping[str, Figures], column: str) -> Arm | None:
    """Return the fastest of the arms that have measured a column."""
    measured = [arm for arm in arms if column in figures.get(arm.name, {})]
    choose = max if column == PREFILL else min
    return choose(measured, key=lambda arm: float(figures[arm.name][column]), default=None)


def agreement(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """Return how many tokens, from the first, are as expected."""
    for i, (token, other) in enumerate(zip(tokens, expected, strict=False)):
        if token != other:
            return i
    return min(len(tokens), len(expected))
