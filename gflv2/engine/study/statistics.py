"""Mean, standard error, and intervals from Student's t distribution, without a package for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """The mean of n numbers.

    Attributes:
        error: standard error of the mean, s/√n with n − 1 in s; NaN for n < 2.
        low, high: the interval that covers the true mean in 95 % of such experiments, if the numbers are normal.
    """

    n: int
    mean: float
    error: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard error and 95 % t interval; numbers that are NaN are left out."""
    known = [value for value in values if not math.isnan(value)]
    n, nan = len(known), math.nan
    if n == 0:
        return Estimate(0, nan, nan, nan, nan)
    mean = math.fsum(known) / n
    if n == 1:
        return Estimate(1, mean, nan, nan, nan)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1) / n)
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * error
    return Estimate(n, mean, error, mean - half, mean + half)


def t_quantile(probability: float, freedom: int) -> float:
    """The t below which a share ``probability`` ≥ 0.5 of Student's distribution lies, by bisection."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, freedom: int) -> float:
    """Share of Student's distribution below t ≥ 0, for whole degrees of freedom (Abramowitz and Stegun, 26.7.3–4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2
