"""Means over seeds with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.minimax.part import short

NUM_SEEDS = 5
# Student's t with 4 degrees of freedom, two-sided 95%.
T_QUANTILE = 2.776


@dataclass(frozen=True)
class Interval:
    """A mean over five seeds and half the width of its 95% interval."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{short(self.mean)} ±{short(self.half_width)}"


def interval(values: np.ndarray) -> Interval:
    """Return the mean of f64[NUM_SEEDS] with its interval by Student's t."""
    (num_values,) = values.shape
    if num_values != NUM_SEEDS:
        raise ValueError(f"an interval is of {NUM_SEEDS} seeds, not of {num_values}")
    deviation = values.std(ddof=1) / np.sqrt(num_values)
    return Interval(float(values.mean()), float(T_QUANTILE * deviation))
