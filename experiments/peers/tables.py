"""What a comparison prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.peers.arms import Arm
from experiments.peers.ratios import COLUMNS, UNITS, Ratio

NAME_WIDTH, WIDTH = 26, 12
NOT_MEASURED = "-"


def print_header() -> None:
    """Print the names and units of the columns."""
    print(f"{'':{NAME_WIDTH}}" + "".join(f"{column:>{WIDTH}}" for column in COLUMNS))
    print(f"{'':{NAME_WIDTH}}" + "".join(f"{UNITS[column]:>{WIDTH}}" for column in COLUMNS))


def print_columns(arm: Arm, figures: Mapping[str, Any]) -> None:
    """Print the row of an arm, and why figures are missing."""
    cells = (_cell(figures.get(column)) for column in COLUMNS)
    reason = f"  {figures['failed']}" if "failed" in figures else ""
    print(f"{arm.name:{NAME_WIDTH}}" + "".join(cells) + reason, flush=True)


def print_load(arm: Arm, load: str, figures: Mapping[str, Any]) -> None:
    """Print the figures of a load on an arm's server."""
    if "failed" in figures:
        said = figures["failed"]
    else:
        said = f"makespan {figures['makespan_s']:.2f} s, mean TTFT {figures['ttft_mean_s']:.3f} s"
    print(f"{arm.name:{NAME_WIDTH}}{load:<20}{said}", flush=True)


def print_ratios(columns: Mapping[str, Mapping[str, Ratio]], loads: Mapping[str, Ratio]) -> None:
    """Print the ratios to the best peers; those below 1 lose."""
    print("\nthis engine over the best peer: above 1 it is faster")
    for group, ratios in columns.items():
        if ratios:
            cells = (_cell(ratios[one].value if one in ratios else None) for one in COLUMNS)
            print(f"{group:{NAME_WIDTH}}" + "".join(cells))
            for column, ratio in ratios.items():
                print(f"{'':{NAME_WIDTH}}{column}: {ratio.ours.name} over {ratio.peer.name}")
    for load, ratio in loads.items():
        print(f"{load:{NAME_WIDTH}}{_cell(ratio.value)}  {ratio.ours.name} over {ratio.peer.name}")


def _cell(figure: float | None) -> str:
    return f"{NOT_MEASURED if figure is None else f'{figure:.4g}':>{WIDTH}}"
