"""How two numbers of the same samples go together: correlation, means in bins, counts in cells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 10  # of the curve
CELLS = 25  # of the picture, along each axis


@dataclass
class Relation:
    """A number x in 0 … 1 that a model gives, and a number y in 0 … 1 that it should tell.

    Attributes:
        samples: their number.
        pearson: Pearson's correlation coefficient of x and y, NaN where one of them is constant or there are fewer
            than two samples.
        gap: Σ_bins (samples in the bin / all samples) · |mean x − mean y|, the expected calibration error of x as an
            estimate of y; NaN without samples.
        bins: ten bins of x of equal width, those without samples left out: ``low``, ``high``, ``samples``, ``mean_x``,
            ``mean_y``, ``std_y``.
        counts: (25, 25) number of samples in each cell; row: y, column: x, both from 0 to 1.
    """

    samples: int
    pearson: float
    gap: float
    bins: list[dict[str, float]]
    counts: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; None stands for NaN."""
        values = {"samples": self.samples, "pearson": or_none(self.pearson), "gap": or_none(self.gap)}
        return {**values, "bins": self.bins, "counts": self.counts.tolist()}


def relation(x: np.ndarray, y: np.ndarray) -> Relation:
    """``Relation`` of two arrays (N,), in float64."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    place = np.clip((x * BINS).astype(np.int64), 0, BINS - 1)
    bins, gap = [], 0.0
    for number in np.unique(place).tolist():
        inside = place == number
        row = {"low": number / BINS, "high": (number + 1) / BINS, "samples": int(inside.sum())}
        row |= {"mean_x": float(x[inside].mean()), "mean_y": float(y[inside].mean()), "std_y": float(y[inside].std())}
        gap += row["samples"] / len(x) * abs(row["mean_x"] - row["mean_y"])
        bins.append(row)
    counts, _, _ = np.histogram2d(y.clip(0, 1), x.clip(0, 1), bins=CELLS, range=((0, 1), (0, 1)))
    return Relation(len(x), pearson(x, y), gap if len(x) else math.nan, bins, counts.astype(np.int64))


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation coefficient of two arrays (N,); NaN where it is not defined."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def or_none(value: float) -> float | None:
    """A number as JSON has it, which has no NaN."""
    return None if math.isnan(value) else value
