"""Style of all figures, and how they are written; needs matplotlib (``.[viz]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "figure.dpi": 120,
        "svg.fonttype": "none",
        "svg.hashsalt": "kvflow",
    }
)


def save(figure: Any, folder: Path, name: str) -> str:
    """Write a figure as PNG and SVG; return the name of the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return f"{folder.name}/{name}.png"
