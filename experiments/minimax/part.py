"""What a part of the comparison returns: a table, findings beside the paper's claims, figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Status(Enum):
    """How far a claim of the paper is known; its full text could not be had."""

    CERTAIN = "certain"  # read in a source
    MEMORY = "from memory"  # of the paper, not read again
    DERIVED = "derived"  # derived or constructed here
    OURS = "ours"  # a demand of this project


@dataclass(frozen=True)
class Finding:
    """A claim, what was measured beside it, and whether that reaches the goal.

    Attributes:
        claim: what the paper says, or what this project demands.
        status: of the claim.
        ours: what was measured.
        goal: what was to be reached; "": nothing was demanded.
        is_reached: whether it was; None: there is no goal, or this run is too short to judge.
    """

    claim: str
    status: Status
    ours: str
    goal: str = ""
    is_reached: bool | None = None


@dataclass(frozen=True)
class Result:
    """What one part measured.

    Attributes:
        findings: in the order in which they are printed.
        figures: for the JSON, under the part's name; figures are drawn from them.
        table: rows of cells, the first row its header.
        demanded: figures that the JSON has at its top, by key.
    """

    findings: Sequence[Finding]
    figures: Mapping[str, Any]
    table: Sequence[Sequence[str]] = ()
    demanded: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A part of the comparison.

    Attributes:
        about: its setting in a line.
        run: measures it; ``quick`` asks for a small form.
    """

    about: str
    run: Callable[[bool], Result]


def spaced(first: int, last: int, num: int) -> list[int]:
    """Return about ``num`` integers from ``first`` to ``last``, evenly spaced in their logarithm.

    Neither is left out, and none comes twice.
    """
    span = math.log(last / first)
    return sorted({round(first * math.exp(span * k / (num - 1))) for k in range(num)})


def rounded(values: Iterable[float]) -> list[float]:
    """Return numbers with four digits, as curves in the JSON have them."""
    return [float(f"{value:.4g}") for value in values]


def short(value: float) -> str:
    """Return a number with two digits, as tables show it."""
    return f"{value:.1e}" if value and not 0.01 <= abs(value) < 1000 else f"{value:.2g}"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with aligned columns, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
